"""Criterion from weights and the norms of their inputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_prune.criteria.criterion import CannotScoreError, Criterion, Scoring
from lightning_prune.criteria.statistics.activation_averages import COUNT, SquaredInputs, input_dim
from lightning_prune.criteria.statistics.statistics import Statistics


@dataclass(frozen=True)
class Wanda(Criterion):
    """Magnitude of a weight times the norm of its input: |w| · ‖x‖₂. For large networks, in one shot without training.

    Sun et al. 2024, 'A simple and effective pruning approach for large language models', eq. 1, for ``nn.Linear`` and
    convolutions. As in the paper (section 3), weights are compared within their output, so that every output loses the
    same share. ‖x‖₂ is the root of the mean square over all observed inputs, so that layers that run more often do not
    have larger scores.

    Forward passes are enough: ``prune_once(..., calibrate=lambda model: model(x))``.

    Scores have the shape of the weight. With ``by_output``, they lie in (0, 1): the share of the weights of the same
    output with a smaller product.

    Args:
        by_output: Compare weights within their output; False compares the products of all layers.
    """

    by_output: bool = True

    scores_weights = True

    def statistics(self) -> Statistics:
        """Sums of squared inputs of every layer."""
        return SquaredInputs()

    def check_weights(self, name: str, scoring: Scoring) -> None:
        """The parameter must be the weight of a linear layer or convolution."""
        path, _, leaf = name.rpartition(".")
        if leaf != "weight" or input_dim(scoring.module.get_submodule(path)) is None:
            raise CannotScoreError(
                "it is not the weight of a linear layer or convolution, so its inputs are not observed. Exclude it: "
                f"Scope(exclude=[{name!r}])."
            )

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """Ranks in (0, 1) within each output, or the products, of the shape of the weight."""
        layer = name.rpartition(".")[0]
        if layer not in scoring.statistics:
            raise ValueError(
                f"Wanda needs inputs of {layer!r}, but none were gathered since the last event. Is it unused? Exclude "
                "it with Scope(exclude=[...]), or let the schedule start later."
            )
        weight = scoring.tensors[name].detach().float().cpu()
        norms = (scoring.statistics[layer] / scoring.statistics[COUNT + layer]).sqrt().cpu()
        groups = getattr(scoring.module.get_submodule(layer), "groups", 1)
        inputs = norms.view(groups, -1).repeat_interleave(len(weight) // groups, 0)  # of each output
        products = weight.abs() * inputs.view(*inputs.shape, *[1] * (weight.dim() - 2))
        return _ranks(products.flatten(1)).view(weight.shape) if self.by_output else products


def _ranks(rows: Tensor) -> Tensor:
    """The rank of every value in its row over the length of the row, so that short and long rows are comparable."""
    ranks = rows.argsort(dim=1, stable=True).argsort(dim=1)
    return (ranks.float() + 0.5) / rows.shape[1]
