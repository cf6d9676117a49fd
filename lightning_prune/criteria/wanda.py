"""Weights and their inputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_prune.criteria.criterion import CannotScoreError, Criterion, Scoring
from lightning_prune.criteria.statistics.activation_averages import COUNT, SquaredInputs, input_dim
from lightning_prune.criteria.statistics.statistics import Statistics


@dataclass(frozen=True)
class Wanda(Criterion):
    """|w| · ‖x‖₂, with x what the weight reads; for large networks, in one shot and without training.

    Sun et al. 2024, 'A simple and effective pruning approach for large language models', eq. 1. Weights of one output
    compete with each other only, as there (section 3), so that every output loses the same share; a score says
    which share of its output's weights stands below. Layers are ``Linear`` and convolutions. The mean over what was
    read is taken before the root, so that layers that read more often do not weigh more.

    Forward passes are enough: ``prune_once(..., calibrate=lambda model: model(x))``.

    Args:
        by_output: Let weights compete within their output; else by value, all together.
    """

    by_output: bool = True

    scores_weights = True

    def statistics(self) -> Statistics:
        """Squared inputs of every layer."""
        return SquaredInputs()

    def check_weights(self, name: str, scoring: Scoring) -> None:
        """The parameter must be the weight of a layer whose inputs can be seen."""
        path, _, leaf = name.rpartition(".")
        if leaf != "weight" or input_dim(scoring.module.get_submodule(path)) is None:
            raise CannotScoreError(
                "it is no weight of a linear layer or convolution, so its inputs are not seen. Exclude it: "
                f"Scope(exclude=[{name!r}])."
            )

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """Ranks in (0, 1) within each output, or the products."""
        layer = name.rpartition(".")[0]
        if layer not in scoring.statistics:
            raise ValueError(
                f"Wanda needs inputs of {layer!r}; none reached it since the last event. Is it unused? Exclude it by "
                "the scope, or let the schedule start later."
            )
        weight = scoring.tensors[name].detach().float().cpu()
        norms = (scoring.statistics[layer] / scoring.statistics[COUNT + layer]).sqrt().cpu()
        groups = getattr(scoring.module.get_submodule(layer), "groups", 1)
        read = norms.view(groups, -1).repeat_interleave(len(weight) // groups, 0)  # by each output
        products = weight.abs() * read.view(*read.shape, *[1] * (weight.dim() - 2))
        return _ranks(products.flatten(1)).view(weight.shape) if self.by_output else products


def _ranks(rows: Tensor) -> Tensor:
    """The share of each row below every value (the middle of it), so that a threshold takes as much of short rows."""
    ranks = rows.argsort(dim=1, stable=True).argsort(dim=1)
    return (ranks.float() + 0.5) / rows.shape[1]
