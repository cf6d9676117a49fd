"""``AccuracyGuard``: limits the drop of a validation metric that pruning may cause."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Literal, get_args

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_prune.callbacks.guard.accepted_network import AcceptedNetwork
from lightning_prune.callbacks.guard.rollback_checkpoint import (
    RollbackCheckpoint,
    check_setting,
    update_checkpoint_callbacks,
)
from lightning_prune.callbacks.guard.verdict import Bound, Reference, Verdict, sounds_better_low
from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning
from lightning_prune.callbacks.pruning.pruning_callbacks import check_pruning
from lightning_prune.callbacks.trainer.lightning_packages import Callback, MisconfigurationException
from lightning_prune.callbacks.trainer.listeners import as_misconfiguration, notify
from lightning_prune.network.argument_checks import check_choice, check_integer, check_number

_STOPPED = (
    "Nothing more is pruned, regardless of max_drop, and training stops at once unless Trainer(min_epochs=...) "
    "prevents it. To continue training, raise min_epochs; to continue pruning, resume without this guard."
)


class AccuracyGuard(Callback):
    """Stops, pauses or rolls back pruning if a validation metric drops too far.

    The guard evaluates the last validation before each event, and the last one of the training; drops during
    fine-tuning between two events are ignored. The validation before the first event is the baseline. NaN counts as a
    drop. All ranks use the metric of rank 0.

    With ``on_drop="rollback"`` a drop restores the network that was accepted last, which is the smallest accepted one:
    shapes, weights, optimizer state, averaged copies, masks and statistics. It is read from a checkpoint that was
    written before the next event, in a folder ``accepted-*`` next to the logs, which is removed when the training ends.
    If the file is not found after a resume, the resumed network replaces it (if an event has just produced that one:
    once it is accepted). Training time is not rolled back: learning rates, their schedulers and the data continue.
    After a rollback the rejected step is repeated at once, half as large; the rest of its event follows in steps of
    that size, and then the schedule continues. After ``retry`` smaller steps in a row were rejected as well, or when
    the training ends, the accepted network is final. Events that no validation has followed by then are rolled back
    too.

    Args:
        monitor: Name of a metric that validation logs, such as ``"val_acc"``.
        max_drop: Largest accepted drop relative to the reference, in the metric's unit; at least 0.
        mode: ``"max"`` if higher is better, ``"min"`` if lower is.
        compared_to: Reference of the drop: ``"baseline"`` (the dense network), ``"previous"`` (the last accepted
            validation) or ``"best"`` (the best accepted validation).
        on_drop: Action after a drop: ``"stop"`` ends the training with the current network; ``"pause"`` holds the next
            event back until the metric has recovered; ``"rollback"`` restores the last accepted network.
        retry: Number of smaller steps in a row that are tried from the same network after a rollback, before the
            training ends with it; at least 0. Requires ``on_drop="rollback"``.

    Raises:
        MisconfigurationException: If an argument is out of range, no validation runs, or the metric is not logged;
            with ``on_drop="rollback"`` also if the strategy shards parameters, or if an earlier callback would conclude
            the training with a network that is rolled back afterwards.
    """

    def __init__(
        self,
        monitor: str,
        max_drop: float,
        mode: Literal["max", "min"] = "max",
        compared_to: Reference = "baseline",
        on_drop: Literal["stop", "pause", "rollback"] = "stop",
        retry: int = 0,
    ) -> None:
        with as_misconfiguration():
            check_number(self, "max_drop", max_drop, minimum=0, hint="in the unit of the metric")
            check_choice(self, "mode", mode, ("max", "min"))
            check_choice(self, "compared_to", compared_to, get_args(Reference))
            check_choice(self, "on_drop", on_drop, ("stop", "pause", "rollback"))
            check_integer(self, "retry", retry, minimum=0)
        if retry and on_drop != "rollback":
            raise MisconfigurationException(
                f"AccuracyGuard retry={retry} tries smaller steps after a rollback, but on_drop={on_drop!r}; use "
                "on_drop='rollback', or leave retry at 0"
            )
        self.monitor, self.max_drop, self.mode = monitor, max_drop, mode
        self.compared_to, self.on_drop, self.retry = compared_to, on_drop, retry
        self.verdicts: list[Verdict] = []
        self._pending: tuple[int, float] | None = None  # (epoch, value) of the last validation, until it has a verdict
        self._judged = self._stopped = False  # whether there was a verdict, a stop in this training
        self._accepted = AcceptedNetwork()
        self._drops = 0  # in a row, since the accepted network

    @property
    def state_key(self) -> str:
        """Key in checkpoints: one for each monitored metric and reference."""
        return self._generate_state_key(monitor=self.monitor, compared_to=self.compared_to)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Reset the state of an earlier training."""
        if stage == "fit":
            self._pending, self._judged, self._stopped, self._drops = None, False, False, 0
            if self._accepted.last is None:  # otherwise an interrupted training has accepted one
                self._accepted.replace(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the Trainer prunes; choose the folder of accepted networks."""
        check_pruning(trainer, self)
        if self.on_drop == "rollback":
            self._accepted.begin(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that validation runs, and that a rollback is possible."""
        if not trainer.enable_validation:
            raise MisconfigurationException(
                f"AccuracyGuard monitors {self.monitor!r}, but no validation runs in this training; give a validation "
                "loader (and no limit_val_batches=0), or remove the guard"
            )
        if self.mode == "max" and sounds_better_low(self.monitor):
            rank_zero_warn(
                f"AccuracyGuard monitors {self.monitor!r} with mode='max': higher is better; if not, use mode='min'"
            )
        if self.on_drop == "rollback":
            check_setting(trainer, pl_module, self)
            if self._accepted.is_lost(trainer, starting=True) and self._accepted.is_current(trainer):
                self._write(trainer, pl_module)
        if self._stopped:
            trainer.should_stop = True
            dropped = [verdict.says for verdict in self.verdicts if not verdict.kept]
            rank_zero_warn(f"AccuracyGuard has ended this training: {dropped[-1]}. {_STOPPED}")

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that validation logs the metric."""
        self._value(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the metric."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._pending = (trainer.current_epoch, trainer.strategy.broadcast(self._value(trainer)))

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """Evaluate the network that is about to be pruned."""
        self._judge(trainer, pl_module, ending=False)
        last = self.verdicts[-1] if self.verdicts else None
        dropped = last is not None and not (last.kept or last.rolled_back)
        if self.on_drop == "rollback" and not dropped and not self._accepted.is_there(trainer):
            self._write(trainer, pl_module)
        over = self.on_drop == "rollback" and self._drops > self.retry
        if last is not None and (over or dropped):
            pruning.pause(last.says)
            if self._judged or over:
                self._stopped = self.on_drop != "pause"
                trainer.should_stop = trainer.should_stop or self._stopped
            else:
                rank_zero_info(f"AccuracyGuard, from an earlier training: {last.says}. Pruning is paused.")
        elif trainer.should_stop:
            pruning.pause("training is about to stop")  # it may continue up to min_epochs

    def on_rollback(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Discard the metric, which belongs to a different network."""
        self._pending = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the final network, and roll back events without a validation."""
        self._judge(trainer, pl_module, ending=True)
        last = self._accepted.last
        if last is not None and not self._accepted.is_current(trainer) and not self._accepted.is_lost(trainer):
            rank_zero_warn(
                f"AccuracyGuard: no validation followed the last event; the network of epoch {last.epoch} is restored"
            )
            self._roll_back(trainer, pl_module, final=True)
        self._accepted.end(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Conclude a fit that was resumed after its last epoch, for which ``on_train_end`` is not called."""
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Verdicts, the metric without a verdict and the paths of files, as plain numbers and strings."""
        return {
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "pending": self._pending,
            "stopped": self._stopped,
            **self._accepted.state_dict(),
            "drops": self._drops,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.verdicts = [Verdict(**verdict) for verdict in state_dict["verdicts"]]
        self._pending = None if state_dict["pending"] is None else tuple(state_dict["pending"])
        self._accepted.load_state_dict(state_dict)
        self._drops, self._stopped = state_dict.get("drops", 0), state_dict.get("stopped", False)

    def _judge(self, trainer: pl.Trainer, pl_module: pl.LightningModule, ending: bool) -> None:
        """Give the verdict on the last validation, once, and act on it."""
        if self._pending is None:
            return
        bound = Bound(self.monitor, self.max_drop, self.mode, self.compared_to)
        verdict = bound.judge(*self._pending, self.verdicts)
        last = None if verdict.kept else self._accepted.last
        if last is not None and self._accepted.is_lost(trainer):
            last = self._accepted.last = None
        final = ending or self._drops + 1 > self.retry
        verdict = replace(verdict, rolled_back=last is not None)
        rank_zero_info(f"AccuracyGuard: {verdict.says}{'' if verdict.kept else self._consequence(last, ending, final)}")
        notify(trainer, "on_verdict", verdict)  # before the state changes: a listener may save a checkpoint
        self.verdicts.append(verdict)
        self._pending, self._judged = None, True
        self._drops += not verdict.kept
        if verdict.kept:
            self._drops *= self._accepted.is_current(trainer)
            self._accepted.replace(trainer)
        if last is not None:
            self._roll_back(trainer, pl_module, final)

    def _consequence(self, snapshot: RollbackCheckpoint | None, ending: bool, final: bool) -> str:
        back = "" if snapshot is None else f", the network of epoch {snapshot.epoch} is restored"
        if ending:
            return f"{back}, the training has ended"
        if snapshot is not None and not final:
            return f"{back}, a step half as large follows"
        return f"{back}, {'pruning pauses' if self.on_drop == 'pause' else 'training stops'}"

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the current network as the accepted one."""
        current = self._accepted.is_current(trainer)
        epochs = [verdict.epoch for verdict in self.verdicts[-1:] if verdict.kept and current]
        epochs += [] if self._pending is None else [self._pending[0]]
        self._drops *= current
        self._accepted.write(trainer, pl_module, epochs[-1] if epochs else trainer.current_epoch)

    def _roll_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, final: bool) -> None:
        checkpoint = self._accepted.restore(trainer, pl_module)
        if final:
            update_checkpoint_callbacks(trainer, checkpoint)
        notify(trainer, "on_rollback", pl_module)

    def _value(self, trainer: pl.Trainer) -> float:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise MisconfigurationException(
                f"AccuracyGuard monitor={self.monitor!r} is not logged by validation; "
                f"it logs {', '.join(sorted(metrics)) or 'nothing'}"
            )
        return float(metrics[self.monitor])
