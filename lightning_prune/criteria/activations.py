"""Criteria from the activations of channels: mean activation, and average percentage of zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.criterion import (
    CannotScoreError,
    SampledCriterion,
    Scoring,
    combine,
    gather_units,
    gathered,
)
from lightning_prune.criteria.statistics.activation_averages import COUNT, AbsoluteActivations, PositiveActivations
from lightning_prune.criteria.statistics.statistics import Statistics


@dataclass(frozen=True)
class _ActivationCriterion(SampledCriterion):
    """Base of criteria that average the activations of channels."""

    scores_channels = True

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some layer output must contain the channels."""
        if not group.activations:
            name = type(self).__name__
            raise CannotScoreError(f"no layer output contains these channels, so {name} cannot score them")

    def _means(self, group: Group, scoring: Scoring) -> Tensor:
        """The mean of each unit, averaged over the layers that write to it unless another aggregate is given."""
        found = []
        for activation in group.activations:
            keys = (activation.module, COUNT + activation.module)
            total, count = (gathered(self, key, scoring, "activations") for key in keys)
            found.append(gather_units(total / count, activation.index) / activation.index.shape[1])
        return combine(found, "mean" if scoring.aggregate == "sum" else scoring.aggregate)


@dataclass(frozen=True)
class MeanActivation(_ActivationCriterion):
    """Mean absolute activation of each channel over examples, positions and steps since the last event.

    Molchanov et al. 2016, 'Pruning convolutional neural networks for resource efficient inference', section 2.2
    (activation). As in the paper, the scores of a layer are divided by their L2 norm, so that layers are comparable.
    Activations are observed at the output of the layer that makes the channels, after the norm layer if one follows,
    and before the nonlinearity. The paper observes them after the ReLU, where none is negative. Where several layers
    write to the same channels, their means are averaged, or reduced by ``Channels(aggregate=...)``.

    Scores have the shape (units,) and lie in [0, 1].

    Args:
        every_n_steps: Observe every n-th training batch, at least 1.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    def statistics(self) -> Statistics:
        """Sums of |activation|."""
        return AbsoluteActivations(self.every_n_steps)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The means, divided by their L2 norm; shape (units,)."""
        means = self._means(group, scoring)
        return means / means.norm().clamp_min(torch.finfo(means.dtype).tiny)


@dataclass(frozen=True)
class APoZ(_ActivationCriterion):
    """One minus the average percentage of zeros (APoZ): the share of positive activations of each channel.

    Hu et al. 2016, 'Network trimming: a data-driven neuron pruning approach towards efficient deep architectures', eq.
    1, over examples, positions and steps since the last event. Activations are observed at the output of the layer that
    makes the channels, after the norm layer if one follows: a ReLU sets to zero what is not positive there. Where
    several layers write to the same channels, their shares are averaged, or reduced by ``Channels(aggregate=...)``.

    Scores have the shape (units,) and lie in [0, 1].

    Args:
        every_n_steps: Observe every n-th training batch, at least 1.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    def statistics(self) -> Statistics:
        """Numbers of positive activations."""
        return PositiveActivations(self.every_n_steps)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The shares of positive activations, which are comparable between layers; shape (units,)."""
        return self._means(group, scoring)
