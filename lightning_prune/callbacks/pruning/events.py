"""The pruning events of one training: due, held back, decided, carried out, taken back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from lightning_prune.budgets.budget import BudgetError
from lightning_prune.callbacks.pruning.carry_out import carry_out
from lightning_prune.callbacks.pruning.decide import decide
from lightning_prune.callbacks.pruning.due_events import DueEvents
from lightning_prune.callbacks.pruning.history import History
from lightning_prune.callbacks.pruning.observing import Observing
from lightning_prune.callbacks.pruning.regrowing import Regrowing
from lightning_prune.callbacks.trainer.listeners import forget_best, notify
from lightning_prune.callbacks.trainer.training_time import time_of
from lightning_prune.masks.enforcer import MaskEnforcer
from lightning_prune.masks.regrowth import Regrowth
from lightning_prune.network.example_input import Example
from lightning_prune.pruners.mask_pruner import MaskPruner
from lightning_prune.pruners.pruner import Pruner
from lightning_prune.schedules.schedule import Schedule
from lightning_prune.surgery.report import Report


class Events:
    """What happens to the network of a Trainer when ``schedule`` says so.

    Attributes:
        pruner: What is done, and how far it has gone.
        observing: What its statistics see.
        history: What was done.
        masks: What keeps masked weights at zero.
        finished: Whether no event will follow.
        operating: Whether some tensors are changed already and others are not.
        held_back: Why the event that is due must not happen now, once a listener has said so.
    """

    def __init__(self, pruner: Pruner, schedule: Schedule, regrowth: Regrowth | None = None) -> None:
        self.pruner, self._schedule = pruner, schedule
        self.observing, self.history, self.masks = Observing(pruner), History(), MaskEnforcer({}, {})
        self._due, self._regrowing = DueEvents(schedule), Regrowing(regrowth)
        self.finished = self.operating = False
        self.held_back: str | None = None

    def begin_training(self) -> None:
        """Nothing is due or half done that an earlier training has left."""
        self._due, self.operating, self.observing.complete = DueEvents(self._schedule), False, False
        self._regrowing.begin_training()

    def try_again(self) -> None:
        """There was a validation: whoever holds the event back may think otherwise now."""
        self._due.try_again()

    def act(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, example: Example | None, caller: Any, batch_idx: int
    ) -> None:
        """Prune if an event is due now and no listener, told ``on_before_prune`` of the ``caller``, holds it back."""
        now, epoch = time_of(trainer, self._schedule, batch_idx), trainer.current_epoch
        if self.finished or not self._due.is_due(now, self.pruner.fraction, epoch):
            return
        self.held_back = None
        notify(trainer, "on_before_prune", pl_module, caller)
        if self.held_back is not None:
            self._due.hold(now, epoch)
            return
        step = self._due.next(now, self.pruner.fraction)
        report = decide(trainer, pl_module, self.pruner, example, step)
        if isinstance(report, BudgetError):
            rank_zero_warn(f"{report} Pruning ends here, at sparsity {self.pruner.sparsity:.4f}.")
            self._finish()
        elif isinstance(report, ValueError):
            rank_zero_warn(f"The pruning event that is due has to wait: {report}")
            self._due.hold(now, epoch)
        else:
            self._due.take(now, step)
            self._carry_out(trainer, pl_module, report)

    def _carry_out(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: Report) -> None:
        if not report.removes:
            rank_zero_info(f"At epoch {trainer.current_epoch} there is nothing to remove yet: {report}")
            self.pruner.fraction = report.fraction
            return
        self.operating = True
        carry_out(trainer, pl_module, self.pruner, report)
        self.history.add(trainer, self.pruner.event, report)
        self.hold_masks(trainer, pl_module)
        notify(trainer, "follow_pruning", pl_module, report)  # before listeners, who may save a checkpoint
        self.operating = False
        rank_zero_info(f"Pruning event {self.pruner.event} at epoch {trainer.current_epoch}: {report}")
        forget_best(trainer)
        if report.fraction >= 1:
            self._finish()
        notify(trainer, "on_prune", pl_module, report.plan, report)

    def follow(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: Report) -> None:
        """This pruner or another has changed the network."""
        self.pruner.resized(report.after)
        self.pruner.follow(report.plan)
        if report.plan.shrinks:
            self.hold_masks(trainer, pl_module)

    def take_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, state: Mapping[str, Any]) -> None:
        """The network is what it was when ``state`` was saved: so is the pruner; smaller steps follow."""
        self._due.roll_back(self.pruner.fraction, state["pruner"]["fraction"])
        self.pruner.load_state_dict(state["pruner"])
        self.history.take_back(state["history"])
        self.observing.move_to(pl_module.device)
        self.finished = state["finished"]
        self.hold_masks(trainer, pl_module)

    def hold_masks(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the masks in force as they are now."""
        self.masks.release()
        if isinstance(self.pruner, MaskPruner):
            self.masks = self.pruner.keeper(pl_module)
            self.masks.hold(trainer.strategy.optimizers)

    def regrow(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Exchange masked weights for others if it is time, and tell listeners ``on_regrow`` how many."""
        if not isinstance(self.pruner, MaskPruner):
            return
        before = self.pruner.masks
        changed = self._regrowing.act(trainer, pl_module, optimizer, before)
        if changed:
            self.pruner.masks = {**before, **changed}
            self.masks.replace(changed)
            count = sum(int(torch.count_nonzero(mask & ~before[name])) for name, mask in changed.items())
            notify(trainer, "on_regrow", pl_module, count)

    def _finish(self) -> None:
        """Observing any longer would cost memory and time."""
        self.finished = True
        self.observing.end()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, dicts and tensors."""
        return {
            "pruner": self.pruner.state_dict(),
            **self._due.state_dict(),
            "finished": self.finished,
            "observed": self.observing.complete,
            "regrown": self._regrowing.state_dict(),
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self.pruner.load_state_dict(state["pruner"])
        self._due.load_state_dict(state)
        self.finished, self.observing.complete = state["finished"], state.get("observed", False)
        self._regrowing.load_state_dict(state.get("regrown", {}))
        if "history" in state:
            self.history.load_state_dict(state["history"])
