"""Magnitude criterion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.criterion import Criterion, Scoring, by_mean, combine, gather_units


@dataclass(frozen=True)
class Magnitude(Criterion):
    """Magnitude |w| of a weight, or p-norm of all weights of a channel.

    Weights: Han et al. 2015, 'Learning both weights and connections for efficient neural networks'. Channels: Li et al.
    2017, 'Pruning filters for efficient ConvNets', section 3.1, extended to coupled layers as in Fang et al. 2023,
    'DepGraph: towards any structural pruning', eq. 5: the norm is taken over the weight matrices of the layers that
    make the channel and of those that read it, and divided by the mean of the group, so that wide and narrow layers are
    comparable. ``Channels(aggregate=...)`` reduces the powers |w|^p of the layers before the root is taken; ``"sum"``
    gives one norm over all layers.

    Scores have the shape of the weight, or (units,), and are at least 0.

    Args:
        p: 1 for the sum of absolute values, 2 for the Euclidean norm. Single weights have the score |w| for both.

    Raises:
        ValueError: If ``p`` is neither 1 nor 2.
    """

    p: Literal[1, 2] = 2

    scores_channels = True
    scores_weights = True

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f"Magnitude p={self.p!r} must be 1 or 2")

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """Norm over all coupled weights, divided by the mean of the group; shape (units,)."""
        parameters = [m for m in group.members if isinstance(scoring.tensors[m.tensor], nn.Parameter)]
        if not parameters:
            return torch.zeros(group.size)
        matrices = [m for m in parameters if scoring.tensors[m.tensor].dim() > 1]
        if scoring.aggregate == "first":  # a layer that makes the channels comes first, wherever it is in the network
            matrices.sort(key=lambda member: member.reads)
        found = []
        for member in matrices or parameters:
            per_index = self._powers_along(scoring.tensors[member.tensor].detach().float(), member.dim)
            found.append(gather_units(per_index, member.index).cpu())
        norm = combine(found, scoring.aggregate) ** (1 / self.p)
        return by_mean(norm)

    def _powers_along(self, weight: Tensor, dim: int) -> Tensor:
        """The sum of |w|^p for every index along ``dim``."""
        if weight.dim() == 1:
            return weight.abs() ** self.p
        if dim == 0:
            return torch.linalg.vector_norm(weight.flatten(1), self.p, dim=1) ** self.p
        powers = weight.square() if self.p == 2 else weight.abs()
        if dim > 1:
            return powers.movedim(dim, 0).flatten(1).sum(1)
        columns = powers.sum(0)
        return columns.flatten(1).sum(1) if columns.dim() > 1 else columns

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """|w| of every weight, of its shape."""
        return scoring.tensors[name].detach().float().abs()
