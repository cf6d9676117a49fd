"""What every criterion is: a score for each unit of a group, or for each weight of a tensor."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor, nn

from lightning_prune.coupling import Group
from lightning_prune.granularity import Aggregate
from lightning_prune.statistics import Statistics


class CannotScoreError(ValueError):
    """A criterion has nothing to say about a group; the message says why."""


@dataclass(frozen=True)
class Scoring:
    """What a criterion may look at.

    Attributes:
        module: The network.
        tensors: Its parameters and buffers by name.
        statistics: What the criterion's statistics have gathered since the last event, by module name.
        event: Number of events before this one.
        aggregate: How the scores that a unit has in each of the coupled tensors become one: what a criterion that
            scores several tensors passes to ``combine``.
    """

    module: nn.Module
    tensors: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    event: int = 0
    aggregate: Aggregate = "sum"


class Criterion(ABC):  # noqa: B024  (a criterion overrides what it scores)
    """Base of all criteria. A criterion scores channels, weights, or both."""

    scores_channels = False
    scores_weights = False

    def statistics(self) -> Statistics | None:
        """A fresh collector of what has to be gathered during training; None where nothing is needed."""
        return None

    def check(self, group: Group, scoring: Scoring) -> None:  # noqa: B027  (nothing to check by default)
        """Whether ``group`` can be scored once statistics are there.

        Raises:
            CannotScoreError: If the criterion has nothing to go by for this group.
        """

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """Scores of the units of ``group``: float32, shape (units,), comparable between groups."""
        raise TypeError(f"{type(self).__name__} does not score channels")

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """Scores of the weights of parameter ``name``: float32, of its shape, comparable between parameters."""
        raise TypeError(f"{type(self).__name__} does not score weights")


def gather_units(values: Tensor, index: Tensor) -> Tensor:
    """Sum of ``values`` over the indices of each unit: (dimension,) and (units, indices a unit) -> (units,)."""
    return values[index.to(values.device)].sum(1)


def combine(scores: Sequence[Tensor], how: Aggregate) -> Tensor:
    """One score for each unit from its scores in every coupled tensor, each of shape (units,).

    The group reduction of Fang et al. 2023, 'DepGraph'. ``"first"`` takes ``scores[0]``.

    Example:
        >>> scores = [torch.tensor([1.0, 4.0]), torch.tensor([3.0, 0.0])]
        >>> combine(scores, "sum"), combine(scores, "mean"), combine(scores, "max"), combine(scores, "first")
        (tensor([4., 4.]), tensor([2., 2.]), tensor([3., 4.]), tensor([1., 4.]))
    """
    if how == "first":
        return scores[0]
    if how == "sum":
        return reduce(torch.add, scores)
    stacked = torch.stack(list(scores))
    return stacked.mean(0) if how == "mean" else stacked.amax(0)
