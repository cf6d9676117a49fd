"""What every criterion is: a score for each unit of a group, or for each weight of a tensor."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.statistics.statistics import Statistics
from lightning_prune.granularity import Aggregate
from lightning_prune.network.argument_checks import check_integer
from lightning_prune.network.example_input import Example


class CannotScoreError(ValueError):
    """A criterion has nothing to say about a group; the message says why."""


@dataclass(frozen=True)
class Scoring:
    """What a criterion may look at.

    Attributes:
        module: The network.
        tensors: Its parameters and buffers by name.
        statistics: What the criterion's statistics have gathered since the last event, by module or parameter name.
            Where a criterion compares losses, the loss without each block by its name, and ``""`` -> that with all.
        event: Number of events before this one.
        example: What its forward receives, where that is known.
        aggregate: How the scores that a unit has in each of the coupled tensors become one: what a criterion that
            scores several tensors passes to ``combine``.
        memo: What a criterion makes once for all tensors.
    """

    module: nn.Module
    tensors: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    event: int = 0
    example: Example | None = None
    aggregate: Aggregate = "sum"
    memo: dict[str, Any] = field(default_factory=dict)


class Criterion(ABC):  # noqa: B024  (a criterion overrides what it scores)
    """Base of all criteria. A criterion scores channels, weights or blocks, or several of these.

    Attributes:
        scores_channels: Whether it scores channels.
        scores_weights: Whether it scores weights.
        scores_blocks: Whether it scores whole blocks.
        compares_losses: Whether it scores blocks by what the network loses when one is skipped.
        rounds: In how many rounds the weights of one event are masked, with scores made anew in each.
    """

    scores_channels = False
    scores_weights = False
    scores_blocks = False
    compares_losses = False
    rounds = 1

    def statistics(self) -> Statistics | None:
        """A fresh collector of what has to be gathered during training; None where nothing is needed."""
        return None

    def check(self, group: Group, scoring: Scoring) -> None:  # noqa: B027  (nothing to check by default)
        """Whether ``group`` can be scored once statistics are there.

        Raises:
            CannotScoreError: If the criterion has nothing to go by for this group.
        """

    def check_weights(self, name: str, scoring: Scoring) -> None:  # noqa: B027  (nothing to check by default)
        """Whether parameter ``name`` can be scored once statistics are there.

        Raises:
            CannotScoreError: If the criterion has nothing to go by for this parameter.
        """

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """Scores of the units of ``group``: float32, shape (units,), comparable between groups."""
        raise TypeError(f"{type(self).__name__} does not score channels")

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """Scores of the weights of parameter ``name``: float32, of its shape, comparable between parameters."""
        raise TypeError(f"{type(self).__name__} does not score weights")

    def score_blocks(self, names: Sequence[str], scoring: Scoring) -> Tensor:
        """Scores of the modules ``names``: float32, shape (blocks,)."""
        raise TypeError(f"{type(self).__name__} does not score blocks")


@dataclass(frozen=True)
class SampledCriterion(Criterion):
    """Base of criteria whose statistics are gathered on every n-th training batch.

    Args:
        every_n_steps: Gather on every n-th training batch, at least 1.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    every_n_steps: int = 1

    def __post_init__(self) -> None:
        check_integer(self, "every_n_steps", self.every_n_steps, minimum=1)


def gathered(criterion: Criterion, name: str, scoring: Scoring, what: str = "gradients") -> Tensor:
    """What statistics have gathered of ``name``, on the CPU.

    Raises:
        ValueError: If that is nothing.
    """
    if name not in scoring.statistics:
        raise ValueError(
            f"{type(criterion).__name__} needs {what} of {name!r}; none reached it since the last event. Is it "
            "frozen, unused, or pruned before the first training step? Exclude it by the scope, or start later."
        )
    return scoring.statistics[name].float().cpu()


def gather_units(values: Tensor, index: Tensor) -> Tensor:
    """Sum of ``values`` over the indices of each unit: (dimension,) and (units, indices a unit) -> (units,)."""
    return values[index.to(values.device)].sum(1)


def sums_of_units(group: Group, values: Mapping[str, Tensor]) -> list[Tensor]:
    """The sum over each unit for every tensor of ``group`` with values, the layers that make the units first.

    Args:
        group: The group.
        values: Tensor name -> values of its shape.

    Returns:
        Tensors of shape (units,), on the CPU.
    """
    sums = []
    for member in sorted(group.members, key=lambda member: member.reads):
        if member.tensor in values:
            rows = values[member.tensor].movedim(member.dim, 0)
            sums.append(gather_units(rows.flatten(1).sum(1) if rows.dim() > 1 else rows, member.index).cpu())
    return sums


def parameters_of(group: Group, scoring: Scoring) -> dict[str, nn.Parameter]:
    """The parameters in which units of ``group`` live, by name."""
    tensors = {member.tensor: scoring.tensors[member.tensor] for member in group.members}
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}


def by_mean(scores: Tensor) -> Tensor:
    """Scores of a group over the mean of their sizes, so that wide and narrow layers compare.

    Example:
        >>> by_mean(torch.tensor([1.0, -3.0]))
        tensor([ 0.5000, -1.5000])
    """
    return scores / scores.abs().mean().clamp_min(torch.finfo(scores.dtype).tiny)


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
