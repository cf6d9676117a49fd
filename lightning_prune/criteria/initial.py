"""How far weights have come since the beginning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.criterion import (
    Criterion,
    Scoring,
    by_mean,
    combine,
    gathered,
    parameters_of,
    sums_of_units,
)
from lightning_prune.criteria.gradients import check_trained
from lightning_prune.criteria.statistics.initial_weights import InitialWeights
from lightning_prune.criteria.statistics.statistics import Statistics
from lightning_prune.network.argument_checks import check_flag


@dataclass(frozen=True)
class MagnitudeIncrease(Criterion):
    """Weights that have grown since the beginning matter: |w| − |w₀|.

    Zhou et al. 2019, 'Deconstructing lottery tickets: zeros, signs, and the supermask', section 2 (magnitude increase;
    with ``distance`` what they call movement). The beginning is where pruning was prepared, that is where the training
    with ``IterativePruning`` starts; w₀ is a copy of the weights of then, kept on the CPU and in every checkpoint, and
    events leave it standing. Nothing is hooked. A unit has the sum over the weight matrices that go with it, relative
    to the mean size of these sums in its group.

    ``prune_once`` takes the weights that the network comes with for w₀, and compares after ``calibrate``, which trains
    it, or puts trained weights in: ``calibrate=lambda model: model.load_state_dict(trained)``.

    Args:
        distance: Score |w − w₀| instead.

    Raises:
        ValueError: If ``distance`` is not a bool.
    """

    distance: bool = False

    scores_channels = True
    scores_weights = True

    def __post_init__(self) -> None:
        check_flag(self, "distance", self.distance)

    def statistics(self) -> Statistics:
        """The weights of the beginning."""
        return InitialWeights()

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some of the weights must be trained."""
        check_trained(group, scoring)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sums of every unit, relative to the mean of the group."""
        own = parameters_of(group, scoring)
        matrices = [name for name, parameter in own.items() if parameter.dim() > 1]
        grown = {name: self.score_weights(name, scoring) for name in matrices or own}
        return by_mean(combine(sums_of_units(group, grown), scoring.aggregate))

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """The increase of every weight."""
        _check_trained_since(scoring)
        before = gathered(self, name, scoring, "initial weights")
        now = scoring.tensors[name].detach().float().cpu()
        return (now - before).abs() if self.distance else now.abs() - before.abs()


def _check_trained_since(scoring: Scoring) -> None:
    """All weights would score the same if they were those of the beginning."""
    if "trained" not in scoring.memo:
        pairs = ((scoring.tensors[name].detach().float().cpu(), w) for name, w in scoring.statistics.items())
        scoring.memo["trained"] = not scoring.statistics or any(not torch.equal(now, w.cpu()) for now, w in pairs)
    if not scoring.memo["trained"]:
        raise ValueError(
            "MagnitudeIncrease compares with the initial weights, and none has changed since: let the schedule start "
            "later, or let calibrate= train the network or load trained weights"
        )
