"""The pruning events of one training: due, held back, decided, applied, rolled back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.budgets.budget import BudgetError
from lightning_prune.callbacks.pruning.apply_on_rank import apply_on_rank
from lightning_prune.callbacks.pruning.block_ablation import check_measurable
from lightning_prune.callbacks.pruning.checks import check_dense, check_groups, check_same_network, check_scopes
from lightning_prune.callbacks.pruning.decide import decide
from lightning_prune.callbacks.pruning.due_events import DueEvents
from lightning_prune.callbacks.pruning.enforced_masks import EnforcedMasks
from lightning_prune.callbacks.pruning.history import History
from lightning_prune.callbacks.pruning.statistics_hooks import StatisticsHooks
from lightning_prune.callbacks.trainer.lightning_packages import MisconfigurationException
from lightning_prune.callbacks.trainer.listeners import as_misconfiguration, notify, reset_best_scores
from lightning_prune.callbacks.trainer.training_time import time_of
from lightning_prune.checkpoint.manifest import is_pruned, removed_modules_in
from lightning_prune.masks.regrowth import Regrowth
from lightning_prune.network.example_input import Example
from lightning_prune.pruners.pruner import Pruner
from lightning_prune.schedules.schedule import Schedule
from lightning_prune.surgery.report import Report


class Stage(Enum):
    """Stage of a pruner within one training; the first three are those before the network is analyzed."""

    DENSE = auto()  # the network was not pruned before this training
    PRUNED_BEFORE = auto()  # the network was pruned before this training
    RESUMED = auto()  # the state of the pruner was loaded from a checkpoint
    PREPARED = auto()  # the network is analyzed, and statistics are gathered
    PRUNING = auto()  # an event is being applied: some tensors have been changed, others have not


class PruningEvents:
    """Prunes the network of a Trainer according to a schedule; called by the hooks of ``IterativePruning``.

    Args:
        pruner: Pruner that plans and applies each event.
        schedule: Sparsity schedule.
        regrowth: Regrowth of masked weights, None for none.

    Attributes:
        finished: Whether no further event follows.
        example: Example input of the network, once it is available.
        history: Record of the events.
        masks: Masks in force.
    """

    def __init__(self, pruner: Pruner, schedule: Schedule, regrowth: Regrowth | None = None) -> None:
        self._pruner, self._schedule = pruner, schedule
        self._due, self._statistics = DueEvents(schedule), StatisticsHooks(pruner)
        self.history, self.masks = History(), EnforcedMasks(pruner, regrowth)
        self.finished = False
        self.example: Example | None = None
        self._stage = Stage.DENSE
        self._held_back: str | None = None  # why a listener holds the due event back
        self._others: list[Pruner] = []
        self._removed_modules: list[str] = []  # when the network was analyzed last

    @property
    def prepared(self) -> bool:
        """Whether the network has been analyzed in this training."""
        return self._stage in (Stage.PREPARED, Stage.PRUNING)

    def setup(self, pl_module: pl.LightningModule) -> None:
        """Discard everything that belongs to an earlier training."""
        self.example, self._due = None, DueEvents(self._schedule)
        self._stage = Stage.PRUNED_BEFORE if is_pruned(pl_module) else Stage.DENSE
        self._statistics.complete = False
        self.masks.begin_training()

    def begin_fit(self, pl_module: pl.LightningModule, state_key: str, others: Iterable[Pruner]) -> None:
        """Check that the network is the one that this pruner expects.

        Args:
            pl_module: The network.
            state_key: Key of the callback in checkpoints.
            others: Other pruners of the same kind in this training, which must have disjoint scopes.
        """
        self._others = list(others)
        if self._stage is not Stage.RESUMED and self._pruner.event == 0:
            check_dense(pl_module, state_key, self._stage is Stage.PRUNED_BEFORE)
        elif self._stage is not Stage.RESUMED:
            check_same_network(self._pruner, pl_module)
        with as_misconfiguration():
            check_scopes(self._pruner, self._others, pl_module)

    def prepare(self, pl_module: pl.LightningModule, example: Example | None) -> None:
        """Analyze the network, and begin to gather statistics."""
        self._analyze(pl_module, example)
        self._stage = Stage.PREPARED

    def begin_training(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Enforce the masks, and check that the criterion can be measured."""
        self.masks.enforce(trainer, pl_module)
        if not self._complete:
            check_measurable(trainer, pl_module, self._pruner.criterion)

    def hold_back(self, reason: str) -> None:
        """Hold back the event that is due; called while ``on_before_prune`` is sent."""
        self._held_back = reason

    def prune_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule, sender: Any, batch_idx: int) -> None:
        """Prune if an event is due and no listener holds it back.

        Args:
            trainer: The Trainer.
            pl_module: The network.
            sender: Callback that listeners receive with ``on_before_prune``.
            batch_idx: Index of the batch that is about to begin.
        """
        now, epoch = time_of(trainer, self._schedule, batch_idx), trainer.current_epoch
        if not self.prepared or self.finished or not self._due.is_due(now, self._pruner.fraction, epoch):
            return
        self._held_back = None
        notify(trainer, "on_before_prune", pl_module, sender)
        if self._held_back is not None:
            self._due.hold(now, epoch)
            return
        step = self._due.next(now, self._pruner.fraction)
        report = decide(trainer, pl_module, self._pruner, self.example, step)
        if isinstance(report, BudgetError):
            rank_zero_warn(f"{report} Pruning ends here, at sparsity {self._pruner.sparsity:.4f}.")
            self._finish()
        elif isinstance(report, ValueError):
            rank_zero_warn(f"The pruning event that is due has to wait: {report}")
            self._due.hold(now, epoch)
        else:
            self._due.take(now, step)
            self._perform(trainer, pl_module, report)

    def follow(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: Report) -> None:
        """Adapt to an event of this pruner or another, which has changed the network."""
        self._pruner.resized(report.after)
        self._pruner.follow(report.plan)
        if report.plan.shrinks:
            self.masks.enforce(trainer, pl_module)
        self._analyze_changes(pl_module)

    def roll_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, state: Mapping[str, Any]) -> None:
        """Return to ``state``, to which the network has been rolled back; smaller steps follow."""
        finished = self.finished
        self._due.roll_back(self._pruner.fraction, state["pruner"]["fraction"])
        self._pruner.load_state_dict(state["pruner"])
        self.history.roll_back(state["history"])
        self._statistics.move_to(pl_module.device)
        self.finished = state["finished"]
        self.masks.enforce(trainer, pl_module)
        if finished and not self.finished and self.prepared:  # gather statistics again
            self._analyze(pl_module, self.example)
        self._analyze_changes(pl_module)

    def begin_batch(self, pl_module: pl.LightningModule, batch_idx: int) -> None:
        """Gather statistics of one training batch."""
        self._statistics.begin_step(pl_module, batch_idx)

    def before_backward(self, trainer: pl.Trainer, loss: Tensor) -> None:
        """Pass the loss to the statistics."""
        self._statistics.begin_backward(trainer, loss)

    def after_backward(self, trainer: pl.Trainer) -> None:
        """Add one backward pass to the statistics."""
        self._statistics.end_backward(trainer)

    def before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Pass all gradients to the statistics, then mask them."""
        self._statistics.begin_optimizer_step(trainer, optimizer)
        self.masks.before_optimizer_step(trainer, pl_module, optimizer)

    def end_batch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch_idx: int) -> None:
        """Check that the first batches reach every layer that is to be scored."""
        self._statistics.end_step()
        self._statistics.check(trainer, pl_module, batch_idx + 1)

    def begin_validation(self, trainer: pl.Trainer) -> None:
        """Validate with masked weights at zero."""
        self.masks.apply()
        self.history.begin_validation(trainer)

    def end_validation(self, trainer: pl.Trainer) -> None:
        """Record the metrics, and try an event that is held back again."""
        self._due.try_again()
        if not trainer.sanity_checking:
            self.history.end_validation(trainer)

    def apply_masks(self) -> None:
        """Zero the masked weights."""
        self.masks.apply()

    def teardown(self) -> None:
        """Remove all hooks from the network and the optimizers."""
        self.masks.release()
        self._statistics.end()

    def state_dict(self) -> dict[str, Any]:
        """State as plain numbers, dicts and tensors."""
        return {
            "pruner": self._pruner.state_dict(),
            **self._due.state_dict(),
            "finished": self.finished,
            "observed": self._statistics.complete,
            "regrown": self.masks.state_dict(),
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._pruner.load_state_dict(state["pruner"])
        self._due.load_state_dict(state)
        self.finished, self._statistics.complete = state["finished"], state.get("observed", False)
        self.masks.load_state_dict(state.get("regrown", {}))
        if "history" in state:
            self.history.load_state_dict(state["history"])
        self._stage = Stage.RESUMED

    def complete_checkpoint(self, trainer: pl.Trainer, state: dict[str, Any]) -> None:
        """Zero the masked weights, and reduce ``state`` over ranks, so that every rank can resume from a checkpoint.

        Raises:
            RuntimeError: If an event was interrupted.
        """
        if self._stage is Stage.PRUNING:
            raise RuntimeError(
                "no checkpoint is saved: the training was interrupted in the middle of a pruning event, which leaves "
                "the network half pruned. Resume from the last checkpoint before."
            )
        self.masks.apply()  # the state dict of the network shares memory with it
        self._statistics.reduce_state(trainer, state["pruner"])

    @property
    def _complete(self) -> bool:
        return self.finished or self._pruner.fraction >= 1

    def _perform(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: Report) -> None:
        if not report.removes:
            rank_zero_info(f"At epoch {trainer.current_epoch} there is nothing to remove yet: {report}")
            self._pruner.fraction = report.fraction
            return
        self._stage = Stage.PRUNING
        apply_on_rank(trainer, pl_module, self._pruner, report)
        self.history.add(trainer, self._pruner.event, report)
        self.masks.enforce(trainer, pl_module)
        notify(trainer, "follow_pruning", pl_module, report)  # before on_prune, where a listener may save a checkpoint
        self._stage = Stage.PREPARED
        rank_zero_info(f"Pruning event {self._pruner.event} at epoch {trainer.current_epoch}: {report}")
        reset_best_scores(trainer)
        if report.fraction >= 1:
            self._finish()
        notify(trainer, "on_prune", pl_module, report.plan, report)

    def _finish(self) -> None:
        """End pruning, and gather no more statistics, which would cost memory and time."""
        self.finished = True
        self._statistics.end()

    def _analyze(self, pl_module: pl.LightningModule, example: Example | None) -> None:
        if not self._complete:  # a second ``fit`` of a network that is pruned completely only trains it
            with as_misconfiguration():
                self._pruner.prepare(pl_module, example, self._schedule.events)
            self._statistics.note_frozen(pl_module)
            check_groups(self._pruner, self._others)
        self.example, self._removed_modules = example, removed_modules_in(pl_module)

    def _analyze_changes(self, pl_module: pl.LightningModule) -> None:
        """Analyze the network again if whole modules have been removed or restored."""
        if not self.prepared or removed_modules_in(pl_module) == self._removed_modules:
            return
        try:
            self._analyze(pl_module, self.example)
        except MisconfigurationException as error:  # where no further event is possible, the next one ends pruning
            rank_zero_warn(str(error))
