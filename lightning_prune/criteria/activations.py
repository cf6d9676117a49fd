"""What channels put out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.criterion import (
    CannotScoreError,
    Criterion,
    SampledCriterion,
    Scoring,
    combine,
    gather_units,
    gathered,
)
from lightning_prune.criteria.statistics.activation_averages import COUNT, AbsoluteActivations, PositiveActivations
from lightning_prune.criteria.statistics.statistics import Statistics


@dataclass(frozen=True)
class MeanActivation(SampledCriterion):
    """The mean |activation| of a channel over examples, space and steps since the last event.

    Molchanov et al. 2016, 'Pruning convolutional neural networks for resource efficient inference', section 2.2
    (activation), divided by the L2 norm of the layer as there, so that layers compare. Activations are seen at the
    output of the layer that makes the channels, behind the norm where one follows and before the nonlinearity; there,
    behind a ReLU, where none is negative. Where several layers write to the same channels their means are averaged, or
    taken together as ``Channels(aggregate=...)`` says.

    Args:
        every_n_steps: Look at every n-th training batch only.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    scores_channels = True

    def statistics(self) -> Statistics:
        """Sums of |activation|."""
        return AbsoluteActivations(self.every_n_steps)

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some layer must show the channels."""
        _check_shown(self, group)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The means with an L2 norm of 1."""
        means = _means(self, group, scoring)
        return means / means.norm().clamp_min(torch.finfo(means.dtype).tiny)


@dataclass(frozen=True)
class APoZ(SampledCriterion):
    """One minus the average percentage of zeros: how often a ReLU behind the channel lets something through.

    Hu et al. 2016, 'Network trimming: a data-driven neuron pruning approach towards efficient deep architectures', eq.
    1, over the examples, the space and the steps since the last event. Seen at the output of the layer that makes the
    channels, behind the norm where one follows: what is not above zero there, a ReLU makes zero. Where several layers
    write to the same channels their shares are averaged, or taken together as ``Channels(aggregate=...)`` says.

    Args:
        every_n_steps: Look at every n-th training batch only.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    scores_channels = True

    def statistics(self) -> Statistics:
        """Counts of what is above zero."""
        return PositiveActivations(self.every_n_steps)

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some layer must show the channels."""
        _check_shown(self, group)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The share above zero, which compares between layers as it is."""
        return _means(self, group, scoring)


def _check_shown(criterion: Criterion, group: Group) -> None:
    if not group.activations:
        raise CannotScoreError(f"no layer output shows these channels, so {type(criterion).__name__} cannot see them")


def _means(criterion: Criterion, group: Group, scoring: Scoring) -> Tensor:
    """The mean of each unit over what was seen of it, the mean over layers where several write to it."""
    found = []
    for activation in group.activations:
        keys = (activation.module, COUNT + activation.module)
        total, count = (gathered(criterion, key, scoring, "activations") for key in keys)
        found.append(gather_units(total / count, activation.index) / activation.index.shape[1])
    return combine(found, "mean" if scoring.aggregate == "sum" else scoring.aggregate)
