"""A pruning method and how far it has gone: everything between two events that Lightning has no part in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.budgets.budget import Budget
from lightning_prune.criteria.criterion import Criterion, Scoring
from lightning_prune.network.example_input import Example
from lightning_prune.network.sharded import FullTensors, is_sharded
from lightning_prune.network.size import Size
from lightning_prune.network.tensors import named_tensors
from lightning_prune.scope import Scope
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report


class Pruner(ABC):
    """What both kinds of pruner share: a method, its statistics, and the state that a checkpoint keeps.

    Args:
        criterion: What matters.
        budget: Until what.
        scope: Where.
    """

    def __init__(self, criterion: Criterion, budget: Budget, scope: Scope) -> None:
        self.criterion, self.budget, self.scope = criterion, budget, scope
        self.statistics = criterion.statistics()
        self.event = 0
        self.fraction = 0.0
        self.sparsity = 0.0

    @abstractmethod
    def prepare(self, model: nn.Module, example: Example | None, events: int | None = None) -> None:
        """Check everything that can be known before the first event, and begin to gather statistics.

        Args:
            model: The network.
            example: What its forward receives.
            events: How many events there will be in all, None where that is not known.

        Raises:
            ValueError: If the method cannot work on this network; the message names the cure.
        """

    def observe(self, model: nn.Module) -> None:  # noqa: B027  (blocks are observed whether they train or not)
        """Gather statistics of what the scope has now that other parameters train than before."""

    @abstractmethod
    def plan(
        self,
        model: nn.Module,
        example: Example | None,
        fraction: float,
        *,
        budget: Budget | None = None,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> Report:
        """Plan the next pruning event; ``model`` is not changed.

        Args:
            model: The network.
            example: What its forward receives.
            fraction: Fraction of the schedule that is reached by this event, in [0, 1].
            budget: Budget of this event, such as a part of an event's count; that of the pruner by default.
            statistics: What the criterion reads instead of the totals that this process has gathered, such as those
                of all ranks, or the losses without each block.

        Raises:
            BudgetError: If the budget cannot be met any more.
            ValueError: If the network cannot be scored now.
        """

    def apply(self, model: nn.Module, report: Report, optimizers: Iterable[Optimizer]) -> None:
        """Carry out ``report``, and begin to gather statistics anew."""
        self._modify(model, report, list(optimizers))
        self.event += 1
        self.fraction = report.fraction
        self.sparsity = report.sparsity
        if self.statistics is not None and not self.statistics.lasting:
            self.statistics.reset()

    def follow(self, plan: Plan) -> None:
        """The network was pruned, by this pruner or another."""
        if self.statistics is not None:
            self.statistics.follow(plan)
            self.statistics.forget(plan.removed_modules)

    @abstractmethod
    def _modify(self, model: nn.Module, report: Report, optimizers: list[Optimizer]) -> None: ...

    def resized(self, size: Size) -> None:  # noqa: B027  (masks are counted in their own scope)
        """The network has this size now, after an event of this pruner or another."""

    def scoring(
        self, model: nn.Module, example: Example | None, statistics: Mapping[str, Tensor] | None = None
    ) -> Scoring:
        """The input of the criterion: the network and ``statistics``, by default those gathered by this process."""
        if statistics is None:
            statistics = {} if self.statistics is None else self.statistics.totals
        tensors = dict(named_tensors(model))
        return Scoring(model, FullTensors(tensors) if is_sharded(model) else tensors, statistics, self.event, example)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, dicts and tensors."""
        state: dict[str, Any] = {"event": self.event, "fraction": self.fraction, "sparsity": self.sparsity}
        if self.statistics is not None:
            state["statistics"] = self.statistics.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.event, self.fraction, self.sparsity = state["event"], state["fraction"], state["sparsity"]
        if self.statistics is not None:
            self.statistics.load_state_dict(state.get("statistics", {"totals": {}, "steps": 0}))


def check_finite(criterion: Criterion, scores: Mapping[str, Tensor]) -> None:
    """Scores that are not numbers rank nothing.

    Raises:
        ValueError: Names the first group or parameter with such a score.
    """
    for name, values in scores.items():
        if not bool(torch.isfinite(torch.stack(torch.aminmax(values))).all()):  # NaN is both; less than to look at each
            raise ValueError(f"{criterion} gives {name!r} scores that are not finite; has the training diverged?")
