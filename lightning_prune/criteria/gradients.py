"""Products of weights and their gradients."""

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
class WeightTaylor(SampledCriterion):
    """How much the loss would change to first order if weights were zero: (g · w)², summed over steps.

    Molchanov et al. 2019, 'Importance estimation for neural network pruning' (Taylor-FO). The square is taken of every
    step's gradient, so that signs do not cancel over steps. A unit has the sum over all weights that go with it, in
    the layers that make the channels and in those that read them, or what ``Channels(aggregate=...)`` makes of the
    sums of each layer.

    Args:
        every_n_steps: Look at the gradients of every n-th optimizer step only.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    scores_channels = True
    scores_weights = True

    def statistics(self) -> Statistics:
        """(g · w)² of every weight."""
        return WeightGradients(_squared_product, self.every_n_steps)

    def check(self, group: Group, scoring: Scoring) -> None:
        """Gradients must reach some of the weights."""
        check_trained(group, scoring)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sums of every unit; all groups have the scale of the loss."""
        return sum_of_gathered(self, group, scoring, lambda name: gathered(self, name, scoring))

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """The sums of every weight."""
        return gathered(self, name, scoring)


@dataclass(frozen=True)
class GateTaylor(SampledCriterion):
    """The same for gates behind batch norms: (γ · ∂L/∂γ + β · ∂L/∂β)² of each channel, summed over steps.

    Molchanov et al. 2019 (gates after batch norm, Taylor-FO-BN). A gate of 1 that multiplies γ · x + β has this
    derivative, and zeroes the channel when it closes. Several batch norms behind a channel add up, or are taken
    together as ``Channels(aggregate=...)`` says; channels without one stay. A β that is frozen counts as 0.

    Args:
        every_n_steps: Look at the gradients of every n-th optimizer step only.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    scores_channels = True

    def statistics(self) -> Statistics:
        """The squared derivative by the gate of every channel."""
        return GateGradients(self.every_n_steps)

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some trained batch norm must stand behind the channels."""
        scales = batch_norm_scales(scoring.module)
        if not any(m.tensor in scales and scales[m.tensor].requires_grad for m in group.members):
            raise CannotScoreError("no batch norm with a trained scale stands behind these channels")

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sums of every unit."""
        scales = batch_norm_scales(scoring.module)
        own = [m.tensor for m in group.members if m.tensor in scales and scales[m.tensor].requires_grad]
        found = {name: gathered(self, name, scoring) for name in own}
        return combine(sums_of_units(group, found), scoring.aggregate)


@dataclass(frozen=True)
class SNIP(Criterion):
    """Connection sensitivity: |w · g|, with the gradient of one batch, or of all steps since the last event together.

    Lee et al. 2019, 'SNIP: single-shot network pruning based on connection sensitivity', eq. 6, before training: use
    ``Constant(1, unit="step")``, so that the first batch decides. A unit has the sum over all weights that go with it,
    relative to the mean of its group: else whole layers go at once.
    """

    scores_channels = True
    scores_weights = True

    def statistics(self) -> Statistics:
        """w · g of every weight."""
        return WeightGradients(torch.mul)

    def check(self, group: Group, scoring: Scoring) -> None:
        """Gradients must reach some of the weights."""
        check_trained(group, scoring)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sums of every unit, relative to the mean of the group."""
        return by_mean(sum_of_gathered(self, group, scoring, lambda name: gathered(self, name, scoring).abs()))

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """The sensitivity of every weight."""
        return gathered(self, name, scoring).abs()


@dataclass(frozen=True)
class Movement(Criterion):
    """Weights that training moves away from zero matter: −Σ w · g over all steps since pruning was prepared.

    Sanh et al. 2020, 'Movement pruning: adaptive sparsity by fine-tuning', eq. 4 with a learning rate of 1: the score
    that straight-through training would give. The sum goes on through events. Meant for fine-tuning of pretrained
    networks. Here what is masked stays masked, while their masks are made anew at every step. ``Sparsity`` and
    ``Ratio`` budgets give the hard version (a share of the best), ``Threshold`` the soft one (all above a value). The
    penalty of the soft one, λ Σ σ(score) (section 4), lowers every score by λ · σ(score) · (1 − σ(score)) in each
    step, so that only what moves faster stays above the threshold. With ``Channels`` a unit, which may be an attention
    head, has the sum over its weights (one score for a block, Lagunas et al. 2021, 'Block pruning for faster
    transformers'), divided by their number so that groups compare.

    Args:
        penalty: λ, 0 or more. A score of 0 loses a quarter of it in a step.

    Raises:
        ValueError: If ``penalty`` is negative or not finite.
    """

    penalty: float = 0.0

    scores_channels = True
    scores_weights = True

    def __post_init__(self) -> None:
        check_number(self, "penalty", self.penalty, minimum=0)

    def statistics(self) -> Statistics:
        """−w · g of every weight, less what the penalty takes."""
        return MovementScores(self.penalty)

    def check(self, group: Group, scoring: Scoring) -> None:
        """Gradients must reach some of the weights."""
        check_trained(group, scoring)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The mean of every unit."""
        total = sum_of_gathered(self, group, scoring, lambda name: gathered(self, name, scoring))
        names = parameters_of(group, scoring)
        ones = {name: torch.ones(names[name].shape) for name in names if name in scoring.statistics}
        return total / reduce(torch.add, sums_of_units(group, ones))

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """The sums of every weight."""
        return gathered(self, name, scoring)


def _squared_product(weight: Tensor, gradient: Tensor) -> Tensor:
    return (weight * gradient).square_()


def check_trained(group: Group, scoring: Scoring) -> None:
    """Whether a gradient can reach some weight of ``group``.

    Raises:
        CannotScoreError: If all of them are frozen.
    """
    if not any(parameter.requires_grad for parameter in parameters_of(group, scoring).values()):
        raise CannotScoreError("all weights that go with these channels are frozen, so no gradient reaches them")


def sum_of_gathered(criterion: Criterion, group: Group, scoring: Scoring, values: Callable[[str], Tensor]) -> Tensor:
    """The sum over each unit of ``values`` of the parameters, which may lack those that no gradient has reached."""
    names = parameters_of(group, scoring)
    seen = {name: values(name) for name in names if name in scoring.statistics}
    return combine(sums_of_units(group, seen or {name: values(name) for name in names}), scoring.aggregate)
