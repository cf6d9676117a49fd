"""Layer-adaptive magnitude criterion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.criterion import Criterion, Scoring, combine, parameters_of, sums_of_units


@dataclass(frozen=True)
class LAMP(Criterion):
    """Squared weight over the sum of the squares of its layer that are not smaller: w_i² / Σ_{|w_j| ≥ |w_i|} w_j².

    Lee et al. 2021, 'Layer-adaptive sparsity for the magnitude-based pruning', eq. 3. Scores are comparable between
    layers: use a budget over all layers together, such as ``Sparsity``. With ``Channels``, the squared norm of all
    weights of a unit replaces w².

    Scores have the shape of the weight, or (units,), and lie in [0, 1]; the largest weight of each layer has 1.
    """

    scores_channels = True
    scores_weights = True

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """Scores of the squared norms of units; shape (units,)."""
        squares = {name: p.detach().float().square() for name, p in parameters_of(group, scoring).items()}
        sums = sums_of_units(group, squares)
        return lamp(combine(sums, scoring.aggregate)) if sums else torch.zeros(group.size)

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """Scores of the squared weights, of their shape."""
        return lamp(scoring.tensors[name].detach().float().square())


def lamp(squares: Tensor) -> Tensor:
    """Each value divided by the sum of all values that are not smaller; of equal values, later ones count as larger.

    Example:
        >>> lamp(torch.tensor([4.0, 1.0, 3.0]))  # 4 / 4, 1 / (1 + 3 + 4), 3 / (3 + 4)
        tensor([1.0000, 0.1250, 0.4286])
    """
    values, order = squares.flatten().sort(stable=True)
    rest = values.double().flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(values)
    scores[order] = (values / rest.clamp_min(torch.finfo(torch.double).tiny)).float()
    return scores.view(squares.shape)
