"""Criteria from the second derivatives of the loss: Fisher, Hessian and GraSP."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.criterion import Criterion, Scoring, by_mean, gathered
from lightning_prune.criteria.gradients import SampledWeightCriterion, check_trained, sum_of_gathered
from lightning_prune.criteria.statistics.second_order import Curvature
from lightning_prune.criteria.statistics.statistics import Statistics
from lightning_prune.criteria.statistics.weight_gradients import WeightGradients


@dataclass(frozen=True)
class Fisher(SampledWeightCriterion):
    """Optimal brain damage with the empirical Fisher in place of the Hessian: ½ h w², with h the mean of g² over steps.

    LeCun et al. 1990, 'Optimal brain damage', step 4 of their recipe; the diagonal of the Fisher as in Theis et al.
    2018, 'Faster gaze prediction with dense networks and Fisher pruning', with gradients of batches instead of single
    examples. The score of a unit is the sum over its weights.

    Scores have the shape of the weight, or (units,), and are at least 0.

    Args:
        every_n_steps: Observe the gradients of every n-th optimizer step, at least 1.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    def statistics(self) -> Statistics:
        """Sums of g² of every weight."""
        return WeightGradients(_square, self.every_n_steps)

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """½ h w², times the number of steps, which is the same for all weights."""
        return _damage(gathered(self, name, scoring), name, scoring)


@dataclass(frozen=True)
class Hessian(SampledWeightCriterion):
    """Optimal brain damage with Hutchinson's estimate of the Hessian: ½ |h| w², with h the mean of z ⊙ Hz over steps.

    LeCun et al. 1990, 'Optimal brain damage', step 4 of their recipe; Hutchinson 1989, 'A stochastic estimator of the
    trace of the influence matrix', with z of random signs, for the diagonal as in Bekas et al. 2007, 'An estimator for
    the diagonal of a matrix'. The absolute value is taken because h can be negative away from a minimum. The score of a
    unit is the sum over its weights. Every observed batch costs a second backward pass through the graph of the first.
    Operations without a second derivative, such as fused attention and most recurrent layers on a GPU, are not
    supported, nor are networks under ``torch.compile``.

    Scores have the shape of the weight, or (units,), and are at least 0.

    Args:
        every_n_steps: Differentiate twice on every n-th training batch, at least 1.
        seed: Seed of the signs z, which also depend on the parameter and on the number of batches since the last event.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    seed: int = 0

    def statistics(self) -> Statistics:
        """Sums of z ⊙ Hz of every weight."""
        return _Hutchinson(self.every_n_steps, self.seed)

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """½ h w², times the number of steps, which is the same for all weights."""
        return _damage(gathered(self, name, scoring).abs(), name, scoring)


@dataclass(frozen=True)
class GraSP(Criterion):
    """Gradient signal preservation: w ⊙ Hg, the decrease of the squared gradient norm when the weight is removed.

    Wang et al. 2020, 'Picking winning tickets before training by preserving gradient flow', eq. 8; the paper's
    importance is −w ⊙ Hg, of which the highest are removed. Weights whose removal would raise the norm of the gradient
    are pruned first. The paper prunes before training: use ``Constant(1, unit="step")``, so that scores come from the
    first batch. Every batch until the event costs a second backward pass, with the same limits as ``Hessian``. The
    score of a unit is the sum over its weights, divided by the mean of its group. Each rank uses its own batches; the
    scores are averaged over ranks.

    Scores have the shape of the weight, or (units,), and can be negative.
    """

    scores_channels = True
    scores_weights = True

    def statistics(self) -> Statistics:
        """Sums of w ⊙ Hg of every weight."""
        return _GradientFlow()

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some weight must be trained."""
        check_trained(group, scoring)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sum over the weights of every unit, divided by the mean of the group; shape (units,)."""
        return by_mean(sum_of_gathered(self, group, scoring, lambda name: gathered(self, name, scoring)))

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """The sum over steps of every weight, of its shape."""
        return gathered(self, name, scoring)


class _Hutchinson(Curvature):
    def __init__(self, every_n_steps: int, seed: int) -> None:
        super().__init__(every_n_steps)
        self._seed = seed

    def _vector(self, name: str, gradient: Tensor) -> Tensor:
        seed = zlib.crc32(f"{self._seed}/{self.steps}/{name}".encode())
        signs = torch.randint(2, gradient.shape, generator=torch.Generator().manual_seed(seed))
        return (2 * signs - 1).to(gradient)

    def _term(self, weight: Tensor, vector: Tensor, product: Tensor) -> Tensor:
        return vector * product


class _GradientFlow(Curvature):
    def _vector(self, name: str, gradient: Tensor) -> Tensor:
        return gradient

    def _term(self, weight: Tensor, vector: Tensor, product: Tensor) -> Tensor:
        return weight * product


def _square(weight: Tensor, gradient: Tensor) -> Tensor:
    return gradient.square()


def _damage(curvature: Tensor, name: str, scoring: Scoring) -> Tensor:
    return curvature * scoring.tensors[name].detach().float().cpu().square() / 2
