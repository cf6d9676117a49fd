"""The guard: what pruning must not cost."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_prune.callbacks.guard.accepted_network import AcceptedNetwork
from lightning_prune.callbacks.guard.rollback_checkpoint import RollbackCheckpoint, check_setting, file_accepted
from lightning_prune.callbacks.guard.verdict import Bound, Reference, Verdict, sounds_better_low
from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning
from lightning_prune.callbacks.pruning.pruning_callbacks import check_pruning
from lightning_prune.callbacks.trainer.lightning_packages import Callback, MisconfigurationException
from lightning_prune.callbacks.trainer.listeners import notify

_STOPPED = (
    "It prunes no more, whatever max_drop is now, and stops at once unless Trainer(min_epochs=...) keeps it going. To "
    "train this network on, raise min_epochs; to prune on, resume without this guard."
)


class AccuracyGuard(Callback):
    """Holds pruning to an accuracy.

    The guard judges the last validation before each event, and the last one of the training: fine-tuning between two
    events may dip as it likes. The validation before the first event is the baseline. A metric that is not a number
    counts as dropped. Ranks judge by the metric of rank 0.

    With ``on_drop="rollback"`` the network that was accepted last, which is the smallest one that was, comes back:
    shapes, weights, what optimizers remember, averaged copies, masks and statistics, from a checkpoint that was written
    before the next event, in a folder ``accepted-*`` beside the logs, which is removed when the training ends. Where it
    is not found after a resume, the network that was resumed takes its place, once it is accepted if an event has just
    made it. Time goes on: learning rates, their
    schedulers and the data stay where they are. The step that dropped is then taken half as large, at once; what is
    left of its event follows in steps of that size, and when it is reached the schedule goes on from there. After
    ``retry`` smaller steps in a row that dropped as well, or when the training ends, the accepted network is final.
    Events that no validation has followed by then are taken back too.

    Args:
        monitor: Name of a metric that validation logs, such as ``"val_acc"``.
        max_drop: How much worse than the reference it may be, in the metric's own unit; at least 0.
        mode: ``"max"`` if higher is better, ``"min"`` if lower is.
        compared_to: ``"baseline"`` (the dense network), ``"previous"`` (the last judgement that was kept) or
            ``"best"`` (the best one that was kept).
        on_drop: ``"stop"`` ends the training, with the network as it was judged; ``"pause"`` holds the next event back
            until the metric has recovered; ``"rollback"`` brings the last accepted network back.
        retry: After a rollback, how many smaller steps in a row are tried from the same network before the training
            ends with it. Only with ``on_drop="rollback"``.

    Raises:
        MisconfigurationException: If an argument is out of range, no validation runs, or it logs no such metric; for
            rollbacks also if the strategy shards parameters, or another callback would conclude the training before.
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
        if isinstance(max_drop, bool) or not isinstance(max_drop, (int, float)) or not 0 <= max_drop < math.inf:
            raise MisconfigurationException(
                f"AccuracyGuard max_drop={max_drop!r} must be a finite number, 0 or more, in the metric's unit"
            )
        _check_choice("mode", mode, ("max", "min"))
        _check_choice("compared_to", compared_to, ("previous", "baseline", "best"))
        _check_choice("on_drop", on_drop, ("stop", "pause", "rollback"))
        if isinstance(retry, bool) or not isinstance(retry, int) or retry < 0:
            raise MisconfigurationException(f"AccuracyGuard retry={retry!r} must be a whole number, 0 or more")
        if retry and on_drop != "rollback":
            raise MisconfigurationException(
                f"AccuracyGuard retry={retry} tries smaller steps after a rollback, but on_drop={on_drop!r}; use "
                "on_drop='rollback', or leave retry at 0"
            )
        self.monitor, self.max_drop, self.mode = monitor, max_drop, mode
        self.compared_to, self.on_drop, self.retry = compared_to, on_drop, retry
        self.verdicts: list[Verdict] = []
        self._pending: tuple[int, float] | None = None  # (epoch, value) of the last validation, until it is judged
        self._judged = self._stopped = False  # in this training
        self._accepted = AcceptedNetwork()
        self._drops = 0  # in a row, of networks made from the accepted one

    @property
    def state_key(self) -> str:
        """One key for each monitored metric."""
        return self._generate_state_key(monitor=self.monitor, compared_to=self.compared_to)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A new training begins."""
        if stage == "fit":
            self._pending, self._judged, self._stopped, self._drops = None, False, False, 0
            if self._accepted.last is None:  # an interrupted training has left one
                self._accepted.replace(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There must be something to guard, and a place to go back to."""
        check_pruning(trainer, self)
        if self.on_drop == "rollback":
            self._accepted.begin(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation must run, and a rollback must be possible."""
        if not trainer.enable_validation:
            raise MisconfigurationException(
                f"AccuracyGuard monitors {self.monitor!r}, but no validation runs in this training; give a validation "
                "loader (and no limit_val_batches=0), or remove the guard"
            )
        if self.mode == "max" and sounds_better_low(self.monitor):
            rank_zero_warn(
                f"AccuracyGuard monitors {self.monitor!r} with mode='max': higher is better; if not, give mode='min'"
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
        """The metric must be among those that validation logs."""
        self._value(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember what was measured."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._pending = (trainer.current_epoch, trainer.strategy.broadcast(self._value(trainer)))

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """Judge the network that is about to be pruned."""
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
                rank_zero_info(f"AccuracyGuard, from an earlier training: {last.says}. Pruning waits.")
        elif trainer.should_stop:
            pruning.pause("training is about to stop")  # it may go on up to min_epochs

    def on_rollback(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What was measured last was another network."""
        self._pending = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge what the last event left."""
        self._judge(trainer, pl_module, ending=True)
        last = self._accepted.last
        if last is not None and not self._accepted.is_current(trainer) and not self._accepted.is_lost(trainer):
            rank_zero_warn(
                f"AccuracyGuard: no validation followed the last event; the network of epoch {last.epoch} is back"
            )
            self._roll_back(trainer, pl_module, final=True)
        self._accepted.end(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Conclude as well where a checkpoint of the last epoch leaves nothing to train, and no training ends."""
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Verdicts, the measurement to be judged and where the files are, as plain numbers and strings."""
        return {
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "pending": self._pending,
            "stopped": self._stopped,
            **self._accepted.state_dict(),
            "drops": self._drops,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.verdicts = [Verdict(**verdict) for verdict in state_dict["verdicts"]]
        self._pending = None if state_dict["pending"] is None else tuple(state_dict["pending"])
        self._accepted.load_state_dict(state_dict)
        self._drops, self._stopped = state_dict.get("drops", 0), state_dict.get("stopped", False)

    def _judge(self, trainer: pl.Trainer, pl_module: pl.LightningModule, ending: bool) -> None:
        """Pass the verdict on the last validation, once, and carry it out."""
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
        notify(trainer, "on_verdict", verdict)  # a checkpoint that a listener saves has all of this before it
        self.verdicts.append(verdict)
        self._pending, self._judged = None, True
        self._drops += not verdict.kept
        if verdict.kept:
            self._drops *= self._accepted.is_current(trainer)
            self._accepted.replace(trainer)
        if last is not None:
            self._roll_back(trainer, pl_module, final)

    def _consequence(self, snapshot: RollbackCheckpoint | None, ending: bool, final: bool) -> str:
        back = "" if snapshot is None else f", the network of epoch {snapshot.epoch} is back"
        if ending:
            return f"{back}, the training has ended"
        if snapshot is not None and not final:
            return f"{back}, a step half as large follows"
        return f"{back}, {'pruning pauses' if self.on_drop == 'pause' else 'training stops'}"

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the network as it is be the one to go back to."""
        current = self._accepted.is_current(trainer)
        epochs = [verdict.epoch for verdict in self.verdicts[-1:] if verdict.kept and current]
        epochs += [] if self._pending is None else [self._pending[0]]
        self._drops *= current
        self._accepted.write(trainer, pl_module, epochs[-1] if epochs else trainer.current_epoch)

    def _roll_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, final: bool) -> None:
        checkpoint = self._accepted.restore(trainer, pl_module)
        if final:
            file_accepted(trainer, checkpoint)
        notify(trainer, "on_rollback", pl_module)

    def _value(self, trainer: pl.Trainer) -> float:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise MisconfigurationException(
                f"AccuracyGuard monitor={self.monitor!r} is not logged by validation; "
                f"it logs {', '.join(sorted(metrics)) or 'nothing'}"
            )
        return float(metrics[self.monitor])


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise MisconfigurationException(
            f"AccuracyGuard {name}={value!r} is not known; use {' or '.join(map(repr, choices))}"
        )
