"""Growing regularisation as a callback."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.budgets.budget import Budget
from lightning_prune.callbacks.pruning.pruning_callbacks import count_events
from lightning_prune.callbacks.trainer.example_batch import declared_example, example_from_batch
from lightning_prune.callbacks.trainer.lightning_packages import Callback, MisconfigurationException
from lightning_prune.callbacks.trainer.listeners import as_misconfiguration
from lightning_prune.callbacks.trainer.strategies import check_whole
from lightning_prune.callbacks.trainer.training_time import time_of
from lightning_prune.criteria.magnitude import Magnitude
from lightning_prune.granularity import Channels, Granularity
from lightning_prune.masks.select import pack, unpack
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
    """An L2 penalty that grows on what is going to be pruned, until hardly anything of it is left to lose.

    Wang et al. 2021, 'Neural pruning via growing regularization' (GReg-1): where the schedule begins, what the budget
    would remove by L1 norm is picked; λ / 2 · Σ w² over all picked weights is then part of the loss, with λ =
    ``ceiling`` times the fraction of the schedule. ``Linear(start=0, end=1000, every=10, unit="step")`` adds the
    paper's δ = ceiling / 100 every K = 10 steps. With channels these are all weights that go with a picked unit: in the
    layers that make it, their norms, and those that read it.

    Nothing is removed by this. Let ``IterativePruning`` with the same granularity, budget and scope, and ``Magnitude``,
    follow once the ceiling is reached: what was picked is then the smallest by far. What it removes is let go.

    The gradient λ · w is added to gradients that are unscaled and fully accumulated, before gradient clipping; the loss
    and its curve stay as they are. Logged as ``penalty/growing``, and λ as ``penalty/growing_strength``.

    Args:
        schedule: How λ grows.
        budget: How much is picked, as by one event that goes all the way; ``NM`` says it itself and takes none.
        granularity: ``Channels()`` picks channels (the default), ``Weights()`` single weights, ``NM(2, 4)`` all but 2
            of 4 neighbouring ones.
        scope: Where; everywhere by default.
        ceiling: λ at the end of the schedule; more than 0. 1 in the paper.

    Raises:
        MisconfigurationException: If an argument is of the wrong kind or out of range, the budget does not fit the
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
        if isinstance(ceiling, bool) or not isinstance(ceiling, (int, float)) or not 0 < ceiling < math.inf:
            raise MisconfigurationException(f"GrowingPenalty ceiling={ceiling!r} must be a finite number above 0")
        with as_misconfiguration():
            budget = budget_for(granularity, budget)
            check_types("GrowingPenalty", schedule=schedule, budget=budget, granularity=granularity, scope=scope)
            assert budget is not None
            self._pruner = make_pruner(granularity, Magnitude(p=1), budget, scope)
        self.schedule, self.budget, self.granularity, self.scope = schedule, budget, granularity, scope
        self.ceiling = ceiling
        self._picked: dict[int, Any] = {}  # packed, by the number of events before: a rollback may undo some
        self._at_hand: dict[str, Tensor] | None = None
        self._example: Example | None = None

    @property
    def state_key(self) -> str:
        """One key for each granularity and scope."""
        return self._generate_state_key(granularity=type(self.granularity).__name__, scope=repr(self.scope))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A new training begins; what was picked is kept only where some of it has been removed already."""
        check_whole(trainer, self)
        if stage == "fit":
            self._example, self._at_hand = None, None
            self._pruner = make_pruner(self.granularity, Magnitude(p=1), self.budget, self.scope)
            if trainer.global_step == 0 and not count_events(trainer):  # else the same Trainer goes on
                self._picked = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See whether there is something to pick, where the network says what it receives."""
        self._example = declared_example(pl_module)
        if self._example is not None:
            self._prepare(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Else the first batch says it; pick what goes when the penalty begins."""
        if self._example is None:
            self._example = example_from_batch(pl_module, batch, needed=True)
            self._prepare(trainer, pl_module)
        if self._strength(trainer) > 0 and count_events(trainer) not in self._picked:
            with as_misconfiguration():
                plan = self._pruner.plan(pl_module, self._example, 1.0).plan
            plan = trainer.strategy.broadcast(plan)  # what is nearly equal may be ordered differently elsewhere
            self._picked[count_events(trainer)], self._at_hand = pack(weights_removed_by(plan, pl_module)), None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradient to the picked weights that this optimizer is about to step."""
        strength = self._strength(trainer)
        tensors = dict(named_tensors(pl_module))
        if self._at_hand is None:
            picked = unpack(self._picked.get(count_events(trainer), {}))
            self._at_hand = {name: mask.to(tensors[name].device) for name, mask in picked.items()}
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        penalty = add_l2_gradient(self._at_hand, tensors, strength, stepped)
        pl_module.log("penalty/growing", penalty, on_step=False, on_epoch=True)
        pl_module.log("penalty/growing_strength", strength, on_step=False, on_epoch=True)

    def on_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan, report: Report) -> None:
        """What is left of the picked weights."""
        before = self._picked.get(count_events(trainer) - 1)
        if before is not None:
            own = dict(pl_module.named_parameters())
            left = {n: select(mask, plan.keep.get(n, {})) for n, mask in unpack(before).items() if n in own}
            self._picked[count_events(trainer)] = pack({name: mask for name, mask in left.items() if mask.any()})
        self._at_hand = None

    def on_rollback(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The network is again what it was after fewer events."""
        self._at_hand = None

    def state_dict(self) -> dict[str, Any]:
        """What is picked, as bits."""
        return {"picked": dict(self._picked)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._picked, self._at_hand = dict(state_dict["picked"]), None

    def _strength(self, trainer: pl.Trainer) -> float:
        return self.ceiling * self.schedule.fraction(time_of(trainer, self.schedule, trainer.fit_loop.batch_idx))

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if count_events(trainer) not in self._picked:
            with as_misconfiguration():
                self._pruner.prepare(pl_module, self._example)
