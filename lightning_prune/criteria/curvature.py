"""Second-order criteria."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.criterion import Criterion, SampledCriterion, Scoring, by_mean, gathered
from lightning_prune.criteria.gradients import check_trained, sum_of_gathered
from lightning_prune.criteria.statistics.second_order import Curvature
from lightning_prune.criteria.statistics.statistics import Statistics
from lightning_prune.criteria.statistics.weight_gradients import WeightGradients


@dataclass(frozen=True)
class Fisher(SampledCriterion):
    """Optimal brain damage with the empirical Fisher for a Hessian: ½ h w², h the mean of g² over steps.

    LeCun et al. 1990, 'Optimal brain damage', step 4 of their recipe; the diagonal of the Fisher as in Theis et al.
    2018, 'Faster gaze prediction with dense networks and Fisher pruning', with the gradients of batches in place of
    those of single examples. A unit has the sum over all weights that go with it.

    Args:
        every_n_steps: Look at the gradients of every n-th optimizer step only.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    scores_channels = True
    scores_weights = True

    def statistics(self) -> Statistics:
        """g² of every weight."""
        return WeightGradients(_square, self.every_n_steps)

    def check(self, group: Group, scoring: Scoring) -> None:
        """Gradients must reach some of the weights."""
        check_trained(group, scoring)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sum of every unit."""
        return sum_of_gathered(self, group, scoring, lambda name: self.score_weights(name, scoring))

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """½ h w² but for the number of steps, which is the same for all weights."""
        return _damage(gathered(self, name, scoring), name, scoring)


@dataclass(frozen=True)
class Hessian(SampledCriterion):
    """Optimal brain damage with Hutchinson's estimate of the Hessian: ½ |h| w², h the mean of z ⊙ Hz over steps.

    LeCun et al. 1990, 'Optimal brain damage', step 4 of their recipe; Hutchinson 1989, 'A stochastic estimator of the
    trace of the influence matrix', with z of random signs, for the diagonal as in Bekas et al. 2007. Where the
    loss bends down, which it does in no direction at a minimum, the size of the curvature counts. Every observed batch
    costs a second backward pass through the graph of the first; operations without a second derivative, such as fused
    attention and most recurrent layers on a GPU, cannot take part, nor can a network under ``torch.compile``.

    Args:
        every_n_steps: Differentiate twice on every n-th training batch only.
        seed: The signs depend on it, on the parameter and on the number of batches since the last event.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    seed: int = 0

    scores_channels = True
    scores_weights = True

    def statistics(self) -> Statistics:
        """z ⊙ Hz of every weight."""
        return _Hutchinson(self.every_n_steps, self.seed)

    def check(self, group: Group, scoring: Scoring) -> None:
        """Gradients must reach some of the weights."""
        check_trained(group, scoring)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sum of every unit."""
        return sum_of_gathered(self, group, scoring, lambda name: self.score_weights(name, scoring))

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """½ h w² but for the number of steps, which is the same for all weights."""
        return _damage(gathered(self, name, scoring).abs(), name, scoring)


@dataclass(frozen=True)
class GraSP(Criterion):
    """What keeps gradients flowing: w ⊙ Hg; weights whose removal would raise the norm of the gradient go first.

    Wang et al. 2020, 'Picking winning tickets before training by preserving gradient flow', eq. 8 (its importance is
    −w ⊙ Hg, of which the highest are removed), before training: use ``Constant(1, unit="step")``, so that the first
    batch decides. It costs what ``Hessian`` costs, on every batch until the event. A unit has the sum over all
    weights that go with it. Ranks look at batches of their own: the mean over ranks is that of as many batches.
    """

    scores_channels = True
    scores_weights = True

    def statistics(self) -> Statistics:
        """w ⊙ Hg of every weight."""
        return _GradientFlow()

    def check(self, group: Group, scoring: Scoring) -> None:
        """Gradients must reach some of the weights."""
        check_trained(group, scoring)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sum of every unit, relative to the mean of the group."""
        return by_mean(sum_of_gathered(self, group, scoring, lambda name: gathered(self, name, scoring)))

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """The sum of every weight."""
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
