"""Criteria from weights and their gradients: Taylor expansions, SNIP and movement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.batchnorm import batch_norm_scales
from lightning_prune.criteria.criterion import (
    CannotScoreError,
    Criterion,
    SampledCriterion,
    Scoring,
    by_mean,
    combine,
    gathered,
    parameters_of,
    sums_of_units,
)
from lightning_prune.criteria.statistics.statistics import Statistics
from lightning_prune.criteria.statistics.weight_gradients import GateGradients, MovementScores, WeightGradients
from lightning_prune.network.argument_checks import check_number


@dataclass(frozen=True)
class SampledWeightCriterion(SampledCriterion):
    """Base of criteria that score weights by their gradients, and units by the sum over their weights.

    Args:
        every_n_steps: Observe every n-th step, at least 1.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    scores_channels = True
    scores_weights = True

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some weight must be trained."""
        check_trained(group, scoring)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sum over the weights of every unit; shape (units,)."""
        return sum_of_gathered(self, group, scoring, lambda name: self.score_weights(name, scoring))


@dataclass(frozen=True)
class WeightTaylor(SampledWeightCriterion):
    """First-order Taylor expansion of the loss over weights: (g · w)², summed over optimizer steps.

    Molchanov et al. 2019, 'Importance estimation for neural network pruning' (Taylor-FO): the squared change of
    the loss if the weight were zero. The gradient of each step is squared, so that signs do not cancel over steps. The
    score of a unit is the sum over its weights, in the layers that make the channels and in those that read them; the
    sums of the layers are reduced by ``Channels(aggregate=...)``.

    Scores have the shape of the weight, or (units,), in the scale of the squared loss.

    Args:
        every_n_steps: Observe the gradients of every n-th optimizer step, at least 1.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    def statistics(self) -> Statistics:
        """Sums of (g · w)² of every weight."""
        return WeightGradients(_squared_product, self.every_n_steps)

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """The sum over steps of every weight, of its shape."""
        return gathered(self, name, scoring)


@dataclass(frozen=True)
class GateTaylor(SampledCriterion):
    """First-order Taylor expansion over gates after batch norms: (γ · ∂L/∂γ + β · ∂L/∂β)², summed over optimizer steps.

    Molchanov et al. 2019, 'Importance estimation for neural network pruning' (Taylor-FO-BN). This is the squared
    derivative of the loss by a gate of 1 that multiplies γ · x + β; closing the gate zeroes the channel. Where several
    batch norms follow a channel, their values are added, or reduced by ``Channels(aggregate=...)``. Channels without a
    batch norm are kept. A frozen β counts as 0.

    Scores have the shape (units,), in the scale of the squared loss.

    Args:
        every_n_steps: Observe the gradients of every n-th optimizer step, at least 1.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    scores_channels = True

    def statistics(self) -> Statistics:
        """Squared derivatives by the gate of every channel."""
        return GateGradients(self.every_n_steps)

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some batch norm with a trained scale must follow the channels."""
        scales = batch_norm_scales(scoring.module)
        if not any(m.tensor in scales and scales[m.tensor].requires_grad for m in group.members):
            raise CannotScoreError("no batch norm with a trained scale follows these channels")

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sums over steps of every unit; shape (units,)."""
        scales = batch_norm_scales(scoring.module)
        own = [m.tensor for m in group.members if m.tensor in scales and scales[m.tensor].requires_grad]
        found = {name: gathered(self, name, scoring) for name in own}
        return combine(sums_of_units(group, found), scoring.aggregate)


@dataclass(frozen=True)
class SNIP(Criterion):
    """Connection sensitivity |w · g|, with the gradient of one batch, or summed over all steps since the last event.

    Lee et al. 2019, 'SNIP: single-shot network pruning based on connection sensitivity', eq. 6. The paper prunes before
    training: use ``Constant(1, unit="step")``, so that scores come from the first batch. The score of a unit is the sum
    over its weights, divided by the mean of its group; without this division, whole layers are removed at once.

    Scores have the shape of the weight, or (units,).
    """

    scores_channels = True
    scores_weights = True

    def statistics(self) -> Statistics:
        """Sums of w · g of every weight."""
        return WeightGradients(torch.mul)

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some weight must be trained."""
        check_trained(group, scoring)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sum over the weights of every unit, divided by the mean of the group; shape (units,)."""
        return by_mean(sum_of_gathered(self, group, scoring, lambda name: gathered(self, name, scoring).abs()))

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """The sensitivity of every weight, of its shape."""
        return gathered(self, name, scoring).abs()


@dataclass(frozen=True)
class Movement(Criterion):
    """Movement away from zero during training: −Σ w · g over all optimizer steps since pruning was prepared.

    Sanh et al. 2020, 'Movement pruning: adaptive sparsity by fine-tuning', eq. 4 with a learning rate of 1, which is
    the score of straight-through training. Meant for the fine-tuning of pretrained networks. The sum continues through
    pruning events. Masked weights stay masked here, whereas the paper computes masks anew at every step. ``Sparsity``
    and ``Ratio`` give the hard version of the paper (the top share of the weights), ``Threshold`` the soft one (all
    scores above a value). The penalty of the soft version, λ Σ σ(score) (section 4), lowers every score by λ · σ(score)
    · (1 − σ(score)) in each step.

    With ``Channels``, the score of a unit (such as an attention head) is the mean over its weights, so that groups are
    comparable: one score per block, as in Lagunas et al. 2021, 'Block pruning for faster transformers'.

    Scores have the shape of the weight, or (units,); they are negative for weights that move towards zero.

    Args:
        penalty: λ, at least 0. A score of 0 decreases by λ / 4 in each step.

    Raises:
        ValueError: If ``penalty`` is not a finite number of at least 0.
    """

    penalty: float = 0.0

    scores_channels = True
    scores_weights = True

    def __post_init__(self) -> None:
        check_number(self, "penalty", self.penalty, minimum=0)

    def statistics(self) -> Statistics:
        """Sums of −w · g of every weight, reduced by the penalty."""
        return MovementScores(self.penalty)

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some weight must be trained."""
        check_trained(group, scoring)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The mean over the weights of every unit; shape (units,)."""
        total = sum_of_gathered(self, group, scoring, lambda name: gathered(self, name, scoring))
        names = parameters_of(group, scoring)
        ones = {name: torch.ones(names[name].shape) for name in names if name in scoring.statistics}
        return total / reduce(torch.add, sums_of_units(group, ones))

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """The sum over steps of every weight, of its shape."""
        return gathered(self, name, scoring)


def _squared_product(weight: Tensor, gradient: Tensor) -> Tensor:
    return (weight * gradient).square_()


def check_trained(group: Group, scoring: Scoring) -> None:
    """Check that some weight of ``group`` is trained.

    Raises:
        CannotScoreError: If all weights are frozen.
    """
    if not any(parameter.requires_grad for parameter in parameters_of(group, scoring).values()):
        raise CannotScoreError("all weights of these channels are frozen, so they get no gradient")


def sum_of_gathered(criterion: Criterion, group: Group, scoring: Scoring, values: Callable[[str], Tensor]) -> Tensor:
    """The sum over each unit of ``values(parameter name)``; parameters without gathered statistics are left out."""
    names = parameters_of(group, scoring)
    seen = {name: values(name) for name in names if name in scoring.statistics}
    return combine(sums_of_units(group, seen or {name: values(name) for name in names}), scoring.aggregate)
