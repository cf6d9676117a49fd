"""``GrowingPenalty``: L2 regularizer that grows on the weights to be pruned."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.budgets.budget import Budget
from lightning_prune.callbacks.pruning.pruning_callbacks import count_events
from lightning_prune.callbacks.trainer.example_batch import declared_example, example_from_batch
from lightning_prune.callbacks.trainer.lightning_packages import Callback
from lightning_prune.callbacks.trainer.listeners import as_misconfiguration
from lightning_prune.callbacks.trainer.strategies import check_whole
from lightning_prune.callbacks.trainer.training_time import time_of
from lightning_prune.criteria.magnitude import Magnitude
from lightning_prune.granularity import Channels, Granularity
from lightning_prune.masks.select import pack, unpack
from lightning_prune.network.argument_checks import check_number
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import named_tensors
from lightning_prune.penalties import add_l2_gradient, weights_removed_by
from lightning_prune.pruners.arguments import check_types
from lightning_prune.pruners.factory import budget_for, make_pruner
from lightning_prune.schedules.schedule import Schedule
from lightning_prune.scope import Scope
from lightning_prune.surgery.plan import Plan, select
from lightning_prune.surgery.report import Report


class GrowingPenalty(Callback):
    """L2 regularizer that grows on the weights to be pruned, until they are close to zero.

    Wang et al. 2021, 'Neural pruning via growing regularization' (GReg-1): when the schedule begins, the weights that
    the budget would remove by L1 norm are selected; λ / 2 · Σ w² over the selected weights is then part of the loss,
    where λ is ``ceiling`` times the fraction of the schedule. ``Linear(start=0, end=1000, every=10, unit="step")`` adds
    the paper's δ = ceiling / 100 every K = 10 steps. With channels these are all weights that are removed with a
    selected unit: in the layers that output it, their norms, and the layers that read it.

    The callback removes nothing. Add ``IterativePruning`` with the same granularity, budget and scope, and
    ``Magnitude``, which prunes once the ceiling is reached: the selected weights are then by far the smallest. Removed
    weights are no longer penalized.

    The gradient λ · w is added to the unscaled, fully accumulated gradients before gradient clipping; the logged loss
    does not change. The penalty is logged as ``penalty/growing``, and λ as ``penalty/growing_strength``.

    Args:
        schedule: Schedule of λ.
        budget: Target size that determines how many weights are selected, as in a single event that reaches it.
            Required for every granularity except ``NM``, which has none.
        granularity: What is selected: ``Channels()``, ``Weights()`` (single weights) or ``NM(2, 4)`` (all but two of
            every four). Default: ``Channels()``.
        scope: Modules whose weights may be selected. Default: all.
        ceiling: λ at the end of the schedule, above 0; the paper uses 1.

    Raises:
        MisconfigurationException: If an argument is of the wrong type or out of range, the budget cannot be met by the
            network, or the strategy shards parameters.
    """

    def __init__(
        self,
        schedule: Schedule,
        budget: Budget | None = None,
        granularity: Granularity | None = None,
        scope: Scope | None = None,
        ceiling: float = 1.0,
    ) -> None:
        granularity, scope = Channels() if granularity is None else granularity, Scope() if scope is None else scope
        with as_misconfiguration():
            check_number(self, "ceiling", ceiling, above=0)
            budget = budget_for(granularity, budget)
            check_types("GrowingPenalty", schedule=schedule, budget=budget, granularity=granularity, scope=scope)
            assert budget is not None
            self._pruner = make_pruner(granularity, Magnitude(p=1), budget, scope)
        self.schedule, self.budget, self.granularity, self.scope = schedule, budget, granularity, scope
        self.ceiling = ceiling
        self._selected: dict[int, Any] = {}  # packed masks by the number of earlier events, which a rollback may reduce
        self._current: dict[str, Tensor] | None = None
        self._example: Example | None = None

    @property
    def state_key(self) -> str:
        """Key in checkpoints: one for each granularity and scope."""
        return self._generate_state_key(granularity=type(self.granularity).__name__, scope=repr(self.scope))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Discard the selection of an earlier training, unless a part of it has been removed already."""
        check_whole(trainer, self)
        if stage == "fit":
            self._example, self._current = None, None
            self._pruner = make_pruner(self.granularity, Magnitude(p=1), self.budget, self.scope)
            if trainer.global_step == 0 and not count_events(trainer):  # otherwise the same Trainer continues
                self._selected = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the budget if the network declares an example input."""
        self._example = declared_example(pl_module)
        if self._example is not None:
            self._prepare(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Otherwise take the example input from the first batch; select weights when the penalty begins."""
        if self._example is None:
            self._example = example_from_batch(pl_module, batch, needed=True)
            self._prepare(trainer, pl_module)
        if self._strength(trainer) > 0 and count_events(trainer) not in self._selected:
            with as_misconfiguration():
                plan = self._pruner.plan(pl_module, self._example, 1.0).plan
            plan = trainer.strategy.broadcast(plan)  # nearly equal scores may be ordered differently on other ranks
            self._selected[count_events(trainer)], self._current = pack(weights_removed_by(plan, pl_module)), None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradient of the penalty to the selected weights that this optimizer updates."""
        strength = self._strength(trainer)
        tensors = dict(named_tensors(pl_module))
        if self._current is None:
            selected = unpack(self._selected.get(count_events(trainer), {}))
            self._current = {name: mask.to(tensors[name].device) for name, mask in selected.items()}
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        penalty = add_l2_gradient(self._current, tensors, strength, stepped)
        pl_module.log("penalty/growing", penalty, on_step=False, on_epoch=True)
        pl_module.log("penalty/growing_strength", strength, on_step=False, on_epoch=True)

    def on_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan, report: Report) -> None:
        """Keep the selected weights that were not removed."""
        before = self._selected.get(count_events(trainer) - 1)
        if before is not None:
            own = dict(pl_module.named_parameters())
            remaining = {n: select(mask, plan.keep.get(n, {})) for n, mask in unpack(before).items() if n in own}
            self._selected[count_events(trainer)] = pack({name: mask for name, mask in remaining.items() if mask.any()})
        self._current = None

    def on_rollback(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Return to the selection after fewer events."""
        self._current = None

    def state_dict(self) -> dict[str, Any]:
        """Selected weights, as packed bits."""
        return {"picked": dict(self._selected)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._selected, self._current = dict(state_dict["picked"]), None

    def _strength(self, trainer: pl.Trainer) -> float:
        return self.ceiling * self.schedule.fraction(time_of(trainer, self.schedule, trainer.fit_loop.batch_idx))

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if count_events(trainer) not in self._selected:
            with as_misconfiguration():
                self._pruner.prepare(pl_module, self._example)
