"""Criterion from the change of the weights since the start of training."""

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
    """Increase of the magnitude since the start of training: |w| − |w₀|.

    Zhou et al. 2019, 'Deconstructing lottery tickets: zeros, signs, and the supermask', section 2 (magnitude increase;
    with ``distance=True`` the criterion called movement there). w₀ are the weights at the start of the training with
    ``IterativePruning``. They are copied to the CPU, saved in every checkpoint, and kept through pruning events. The
    score of a unit is the sum over its weight matrices, divided by the mean absolute sum of its group.

    In ``prune_once``, w₀ are the weights of the given network, and w those after ``calibrate``, which has to train the
    network or load trained weights: ``calibrate=lambda model: model.load_state_dict(trained)``.

    Scores have the shape of the weight, or (units,); they are negative for weights that have become smaller.

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
        """Copies of the initial weights."""
        return InitialWeights()

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some weight must be trained."""
        check_trained(group, scoring)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sum over the weights of every unit, divided by the mean of the group; shape (units,)."""
        own = parameters_of(group, scoring)
        matrices = [name for name, parameter in own.items() if parameter.dim() > 1]
        increases = {name: self.score_weights(name, scoring) for name in matrices or own}
        return by_mean(combine(sums_of_units(group, increases), scoring.aggregate))

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """The increase of every weight, of its shape."""
        _check_trained_since(scoring)
        before = gathered(self, name, scoring, "initial weights")
        now = scoring.tensors[name].detach().float().cpu()
        return (now - before).abs() if self.distance else now.abs() - before.abs()


def _check_trained_since(scoring: Scoring) -> None:
    """Raise an error if all weights still have their initial values, so that all would have the score 0."""
    if "trained" not in scoring.memo:
        pairs = ((scoring.tensors[name].detach().float().cpu(), w) for name, w in scoring.statistics.items())
        scoring.memo["trained"] = not scoring.statistics or any(not torch.equal(now, w.cpu()) for now, w in pairs)
    if not scoring.memo["trained"]:
        raise ValueError(
            "MagnitudeIncrease compares with the initial weights, but no weight has changed: let the schedule start "
            "later, or let calibrate= train the network or load trained weights"
        )
