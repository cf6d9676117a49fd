"""Criterion from the distances between the filters of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.criterion import CannotScoreError, Criterion, Scoring, by_mean, combine


@dataclass(frozen=True)
class GeometricMedian(Criterion):
    """Sum of the distances between a filter and all others of its layer: Σ_j ‖w_i − w_j‖₂.

    He et al. 2019, 'Filter pruning via geometric median for deep convolutional neural networks acceleration' (FPGM):
    a filter near the geometric median of its layer is redundant. The weights of a unit in a layer that makes the
    channels are one vector; where several layers make them, their distances are reduced by ``Channels(aggregate=...)``.

    Scores have the shape (units,), divided by the mean of the group, so that groups are comparable.
    """

    scores_channels = True

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some layer with a weight matrix must make the channels."""
        if not _filters(group, scoring):
            raise CannotScoreError("no layer with a weight matrix makes these channels")

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sum of distances to all other units, divided by the mean of the group; shape (units,)."""
        distances = []
        for rows in _filters(group, scoring):
            distances.append(torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1))
        total = combine(distances, scoring.aggregate)
        return by_mean(total)


def _filters(group: Group, scoring: Scoring) -> list[Tensor]:
    """The weights of each layer that makes the channels: (units, weights per unit)."""
    found = []
    for member in group.members:
        weight = scoring.tensors[member.tensor]
        if isinstance(weight, nn.Parameter) and weight.dim() > 1 and not member.reads:
            rows = weight.detach().float().cpu().movedim(member.dim, 0)[member.index]
            found.append(rows.flatten(1))
    return found
