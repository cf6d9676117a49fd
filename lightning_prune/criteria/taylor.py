"""First-order Taylor expansion over activations."""

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
from lightning_prune.criteria.statistics.activation_gradient import ActivationGradient
from lightning_prune.criteria.statistics.statistics import Statistics
from lightning_prune.network.layer_outputs import has_packed_projection


@dataclass(frozen=True)
class Taylor(SampledCriterion):
    """How much the loss would change if a feature map were zero: |mean over space of activation × gradient|.

    Molchanov et al. 2016, 'Pruning convolutional neural networks for resource efficient inference', eq. 8: the mean
    over space and the absolute value are taken for every example, summed over examples, steps and ranks since the
    last event, and divided by the L2 norm of the layer so that layers compare. Activations are seen at the output
    of the layer that makes the channels, behind the norm where one follows; where several layers write to the
    same channels (residual streams) their sums are added, or taken together as ``Channels(aggregate=...)`` says. Of
    recurrent layers all that they return counts, the last states too, with time for space; of
    ``nn.MultiheadAttention`` the queries, keys and values.

    Args:
        every_n_steps: Gather on every n-th training batch only. Gathering keeps one copy of the observed activations
            until the backward pass.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    scores_channels = True

    def statistics(self) -> Statistics:
        """Activation × gradient of every group's layers."""
        return ActivationGradient(self.every_n_steps)

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some layer must show the channels, and where it is attention its projections, as far as is known by now."""
        if not group.activations:
            raise CannotScoreError(
                "no layer output shows these channels, so Taylor cannot see them; WeightTaylor() can rank them"
            )
        for name in {activation.module for activation in group.activations} - scoring.statistics.keys():
            if scoring.statistics and has_packed_projection(scoring.module.get_submodule(name)):
                raise CannotScoreError(f"no gradient shows the projections inside {name!r}: is it frozen or compiled?")

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """Accumulated Taylor terms with an L2 norm of 1."""
        found = []
        for activation in group.activations:
            found.append(gather_units(gathered(self, activation.module, scoring), activation.index))
        total = combine(found, scoring.aggregate)
        return total / total.norm().clamp_min(torch.finfo(total.dtype).tiny)
