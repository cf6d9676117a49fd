"""Pruner: base class of the pruners, with the state of a pruning method between events; independent of Lightning."""

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
    """Base class of all pruners: a pruning method, its statistics, and the state that checkpoints contain.

    Args:
        criterion: Saliency criterion that scores channels, weights or blocks.
        budget: Target size.
        scope: Modules and parameters that may be pruned.

    Attributes:
        statistics: What the criterion gathers during training; None if it needs nothing.
        event: Number of events so far.
        fraction: Fraction of the schedule that was reached.
        sparsity: Fraction removed of the dense network.
    """

    def __init__(self, criterion: Criterion, budget: Budget, scope: Scope) -> None:
        self.criterion, self.budget, self.scope = criterion, budget, scope
        self.statistics = criterion.statistics()
        self.event = 0
        self.fraction = 0.0
        self.sparsity = 0.0

    @abstractmethod
    def prepare(self, model: nn.Module, example: Example | None, events: int | None = None) -> None:
        """Check the method on this network before the first event, and start to gather statistics.

        Args:
            model: The network.
            example: What its forward receives.
            events: Total number of events; None if it is not known.

        Raises:
            ValueError: If the method cannot be used with this network; the message names the remedy.
        """

    def observe(self, model: nn.Module) -> None:  # noqa: B027  (blocks are observed whether they are trained or not)
        """Adapt the gathering of statistics after parameters were frozen or unfrozen."""

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
        """Apply the plan of ``report`` to the network and its optimizers, and reset the statistics."""
        self._modify(model, report, list(optimizers))
        self.event += 1
        self.fraction = report.fraction
        self.sparsity = report.sparsity
        if self.statistics is not None and not self.statistics.lasting:
            self.statistics.reset()

    def follow(self, plan: Plan) -> None:
        """Adapt the state to a network that was pruned, by this pruner or another."""
        if self.statistics is not None:
            self.statistics.follow(plan)
            self.statistics.discard(plan.removed_modules)

    @abstractmethod
    def _modify(self, model: nn.Module, report: Report, optimizers: list[Optimizer]) -> None: ...

    def resized(self, size: Size) -> None:  # noqa: B027  (the sparsity of masks refers to their scope)
        """Update the sparsity to the ``size`` of the network, after an event of this pruner or another."""

    def scoring(
        self, model: nn.Module, example: Example | None, statistics: Mapping[str, Tensor] | None = None
    ) -> Scoring:
        """The input of the criterion: the network and ``statistics``, by default those gathered by this process."""
        if statistics is None:
            statistics = {} if self.statistics is None else self.statistics.totals
        tensors = dict(named_tensors(model))
        return Scoring(model, FullTensors(tensors) if is_sharded(model) else tensors, statistics, self.event, example)

    def state_dict(self) -> dict[str, Any]:
        """The state as plain numbers, dicts and tensors."""
        state: dict[str, Any] = {"event": self.event, "fraction": self.fraction, "sparsity": self.sparsity}
        if self.statistics is not None:
            state["statistics"] = self.statistics.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        self.event, self.fraction, self.sparsity = state["event"], state["fraction"], state["sparsity"]
        if self.statistics is not None:
            self.statistics.load_state_dict(state.get("statistics", {"totals": {}, "steps": 0}))


def check_finite(criterion: Criterion, scores: Mapping[str, Tensor]) -> None:
    """Check that all scores are finite.

    Raises:
        ValueError: If they are not; the message names the first group or parameter.
    """
    for name, values in scores.items():
        if not bool(
            torch.isfinite(torch.stack(torch.aminmax(values))).all()
        ):  # NaN propagates to both; needs less memory than a check of each
            raise ValueError(f"{criterion} gives {name!r} scores that are not finite; has the training diverged?")
