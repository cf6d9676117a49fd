"""Base classes of saliency criteria, and reductions from weights to units that criteria share."""

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
    """Raised where a criterion cannot score a group or parameter; the message contains the reason."""


@dataclass(frozen=True)
class Scoring:
    """Input of a criterion: the network, and the statistics gathered during training.

    Attributes:
        module: The network.
        tensors: Its parameters and buffers, by name.
        statistics: Totals that the criterion's statistics have gathered since the last event, by module or parameter
            name. For a criterion that compares losses: block name -> loss without this block, and ``""`` -> loss with
            all blocks.
        event: Number of events before this one.
        example: Example input of the network, where there is one.
        aggregate: Reduction over the scores that a unit has in each of its coupled tensors, for ``combine``.
        memo: Cache for values that a criterion computes once for all tensors of an event.
    """

    module: nn.Module
    tensors: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    event: int = 0
    example: Example | None = None
    aggregate: Aggregate = "sum"
    memo: dict[str, Any] = field(default_factory=dict)


class Criterion(ABC):  # noqa: B024  (a criterion overrides what it scores)
    """Saliency criterion that scores channels, weights or blocks; base of all criteria. Low scores are pruned first.

    Attributes:
        scores_channels: Whether it scores channels.
        scores_weights: Whether it scores single weights.
        scores_blocks: Whether it scores whole blocks.
        compares_losses: Whether it scores a block by the loss of the network without this block.
        rounds: Number of rounds in which the weights of one event are masked; scores are computed anew in each.
    """

    scores_channels = False
    scores_weights = False
    scores_blocks = False
    compares_losses = False
    rounds = 1

    def statistics(self) -> Statistics | None:
        """New statistics, which gather what the criterion needs during training; None if it needs nothing."""
        return None

    def check(self, group: Group, scoring: Scoring) -> None:  # noqa: B027  (nothing to check by default)
        """Check that ``group`` can be scored once statistics have been gathered.

        Raises:
            CannotScoreError: If the criterion cannot score this group.
        """

    def check_weights(self, name: str, scoring: Scoring) -> None:  # noqa: B027  (nothing to check by default)
        """Check that the parameter ``name`` can be scored once statistics have been gathered.

        Raises:
            CannotScoreError: If the criterion cannot score this parameter.
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
    """The total that statistics have gathered for ``name``, as float32 on the CPU.

    Args:
        criterion: The criterion, for the message.
        name: Name of a module or parameter.
        scoring: Where the totals are.
        what: What is gathered, for the message.

    Raises:
        ValueError: If nothing was gathered for ``name``.
    """
    if name not in scoring.statistics:
        raise ValueError(
            f"{type(criterion).__name__} needs {what} of {name!r}, but none were gathered since the last event. Is it "
            "frozen, unused, or pruned before the first training step? Exclude it with Scope(exclude=[...]), or let "
            "the schedule start later."
        )
    return scoring.statistics[name].float().cpu()


def gather_units(values: Tensor, index: Tensor) -> Tensor:
    """Sum of ``values`` over the indices of each unit: (size,) and (units, indices per unit) -> (units,)."""
    return values[index.to(values.device)].sum(1)


def sums_of_units(group: Group, values: Mapping[str, Tensor]) -> list[Tensor]:
    """The sum over each unit, for every tensor of ``group`` that has values; layers that make the units come first.

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
    """The parameters that contain units of ``group``, by name."""
    tensors = {member.tensor: scoring.tensors[member.tensor] for member in group.members}
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}


def by_mean(scores: Tensor) -> Tensor:
    """Scores divided by the mean of their absolute values, so that wide and narrow layers are comparable.

    Example:
        >>> by_mean(torch.tensor([1.0, -3.0]))
        tensor([ 0.5000, -1.5000])
    """
    return scores / scores.abs().mean().clamp_min(torch.finfo(scores.dtype).tiny)


def combine(scores: Sequence[Tensor], how: Aggregate) -> Tensor:
    """Reduce the scores that units have in each coupled tensor to one score per unit.

    The group reduction of Fang et al. 2023, 'DepGraph: towards any structural pruning'.

    Args:
        scores: Scores in each tensor, each of shape (units,).
        how: ``"sum"``, ``"mean"``, ``"max"``, or ``"first"`` for ``scores[0]``.

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
