"""Criterion from the first-order Taylor expansion of the loss over activations."""

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
    """First-order Taylor expansion of the loss over feature maps: |mean over positions of activation × gradient|.

    Molchanov et al. 2016, 'Pruning convolutional neural networks for resource efficient inference', eq. 8: the change
    of the loss if the feature map were zero. The mean over positions and the absolute value are taken for every
    example; they are summed over examples, steps and ranks since the last event, and divided by the L2 norm of the
    layer, so that layers are comparable. Activations are observed at the output of the layer that makes the channels,
    after the norm layer if one follows. Where several layers write to the same channels (residual streams), their sums
    are added, or reduced by ``Channels(aggregate=...)``. Of recurrent layers, all returned tensors are observed,
    including the last states, with time steps as positions; of ``nn.MultiheadAttention``, queries, keys and values.

    Scores have the shape (units,) and lie in [0, 1].

    Args:
        every_n_steps: Observe every n-th training batch, at least 1. On observed batches, a copy of the activations is
            kept until the backward pass.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    scores_channels = True

    def statistics(self) -> Statistics:
        """Sums of activation × gradient for the layers of every group."""
        return ActivationGradient(self.every_n_steps)

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some layer output must contain the channels; attention layers must have gradients, once any were gathered."""
        if not group.activations:
            raise CannotScoreError(
                "no layer output contains these channels, so Taylor cannot score them; WeightTaylor() can"
            )
        for name in {activation.module for activation in group.activations} - scoring.statistics.keys():
            if scoring.statistics and has_packed_projection(scoring.module.get_submodule(name)):
                raise CannotScoreError(
                    f"no gradient of the projections inside {name!r} was observed: is it frozen or compiled?"
                )

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The accumulated Taylor terms, divided by their L2 norm; shape (units,)."""
        found = []
        for activation in group.activations:
            found.append(gather_units(gathered(self, activation.module, scoring), activation.index))
        total = combine(found, scoring.aggregate)
        return total / total.norm().clamp_min(torch.finfo(total.dtype).tiny)
