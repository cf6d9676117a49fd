"""The guard: what pruning must not cost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_prune.callbacks.pruning import IterativePruning
from lightning_prune.callbacks.support import tell

Reference = Literal["previous", "baseline", "best"]

_FLOAT32_ROUNDING = 1e-6  # metrics are logged in float32: 1.0 - 0.9 must be within 0.1


@dataclass(frozen=True)
class Verdict:
    """One judgement of the guard.

    Attributes:
        epoch: Epoch of the validation that was judged.
        value: The monitored metric then.
        reference: What it was compared to, None where there was nothing yet.
        kept: Whether the drop was within bounds.
        says: The verdict in words.
    """

    epoch: int
    value: float
    reference: float | None
    kept: bool
    says: str

    @property
    def short(self) -> str:
        """The verdict in a few words."""
        if math.isnan(self.value):
            return "dropped (nan)"
        if self.reference is None:
            return "baseline"
        return f"{'kept' if self.kept else 'dropped'} ({self.value - self.reference:+.4f})"


class AccuracyGuard(Callback):
    """Holds pruning to an accuracy.

    The guard judges the last validation before each event, and the last one of the training: fine-tuning between two
    events may dip as it likes. The validation before the first event is the baseline. A metric that is not a number
    counts as dropped. Ranks judge by the metric of rank 0.

    Args:
        monitor: Name of a metric that validation logs, such as ``"val_acc"``.
        max_drop: How much worse than the reference it may be, in the metric's own unit; at least 0.
        mode: ``"max"`` if higher is better, ``"min"`` if lower is.
        compared_to: ``"baseline"`` (the dense network), ``"previous"`` (the last judgement that was kept) or
            ``"best"`` (the best one that was kept).
        on_drop: ``"stop"`` ends the training, with the network as it was judged; ``"pause"`` holds the next event back
            until the metric has recovered.

    Raises:
        MisconfigurationException: If an argument is out of range, no validation runs, or it logs no such metric.
    """

    def __init__(
        self,
        monitor: str,
        max_drop: float,
        mode: Literal["max", "min"] = "max",
        compared_to: Reference = "baseline",
        on_drop: Literal["stop", "pause"] = "stop",
    ) -> None:
        if isinstance(max_drop, bool) or not isinstance(max_drop, (int, float)) or not 0 <= max_drop < math.inf:
            raise MisconfigurationException(
                f"AccuracyGuard max_drop={max_drop!r} must be a finite number, 0 or more, in the metric's unit"
            )
        _check_choice("mode", mode, ("max", "min"))
        _check_choice("compared_to", compared_to, ("previous", "baseline", "best"))
        _check_choice("on_drop", on_drop, ("stop", "pause"))
        self.monitor, self.max_drop, self.mode = monitor, max_drop, mode
        self.compared_to, self.on_drop = compared_to, on_drop
        self.verdicts: list[Verdict] = []
        self._pending: tuple[int, float] | None = None  # (epoch, value) of the last validation, until it is judged
        self._judged = False  # in this training

    @property
    def state_key(self) -> str:
        """One key for each monitored metric."""
        return self._generate_state_key(monitor=self.monitor, compared_to=self.compared_to)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A new training begins."""
        if stage == "fit":
            self._pending, self._judged = None, False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There must be something to guard."""
        if not any(isinstance(callback, IterativePruning) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException("AccuracyGuard has no pruning to guard; add IterativePruning(...)")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation must run."""
        if not trainer.enable_validation:
            raise MisconfigurationException(
                f"AccuracyGuard monitors {self.monitor!r}, but no validation runs in this training; give a validation "
                "loader (and no limit_val_batches=0), or remove the guard"
            )

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The metric must be among those that validation logs."""
        self._value(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember what was measured."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._pending = (trainer.current_epoch, trainer.strategy.broadcast(self._value(trainer)))

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """Judge the network that is about to be pruned."""
        self._judge(trainer, {"stop": "training stops", "pause": "pruning pauses"}[self.on_drop])
        if self.verdicts and not self.verdicts[-1].kept:
            pruning.pause(self.verdicts[-1].says)
            if self._judged:
                trainer.should_stop = trainer.should_stop or self.on_drop == "stop"
            else:
                rank_zero_info(f"AccuracyGuard, from an earlier training: {self.verdicts[-1].says}. Pruning waits.")
        elif trainer.should_stop:
            pruning.pause("training is about to stop")  # it may go on up to min_epochs

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge what the last event left."""
        self._judge(trainer, "the training has ended")

    def state_dict(self) -> dict[str, Any]:
        """Verdicts and the measurement to be judged, as plain numbers and strings."""
        return {"verdicts": [asdict(verdict) for verdict in self.verdicts], "pending": self._pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.verdicts = [Verdict(**verdict) for verdict in state_dict["verdicts"]]
        self._pending = None if state_dict["pending"] is None else tuple(state_dict["pending"])

    def _judge(self, trainer: pl.Trainer, consequence: str) -> None:
        """Add the verdict on the last validation, once; ``consequence`` says what a drop leads to."""
        if self._pending is None:
            return
        (epoch, value), self._pending, self._judged = self._pending, None, True
        reference = self._reference()
        kept = self._is_kept(value, reference)
        verdict = Verdict(epoch, value, reference, kept, self._words(value, reference, kept))
        self.verdicts.append(verdict)
        rank_zero_info(f"AccuracyGuard: {verdict.says}{'' if kept else f', {consequence}'}")
        tell(trainer, "on_verdict", verdict)

    def _reference(self) -> float | None:
        kept = [verdict.value for verdict in self.verdicts if verdict.kept]
        if not kept:
            return None
        if self.compared_to == "best":
            return max(kept) if self.mode == "max" else min(kept)
        return kept[0] if self.compared_to == "baseline" else kept[-1]

    def _is_kept(self, value: float, reference: float | None) -> bool:
        if reference is None:
            return not math.isnan(value)
        bound = reference - self.max_drop if self.mode == "max" else reference + self.max_drop
        within = value >= bound if self.mode == "max" else value <= bound
        return within or math.isclose(value, bound, rel_tol=_FLOAT32_ROUNDING)

    def _words(self, value: float, reference: float | None, kept: bool) -> str:
        if reference is None:
            return f"{self.monitor} {value:.4f} is {'the baseline' if kept else 'not a number: dropped'}"
        against = f"{self.monitor} {value:.4f} against {reference:.4f} ({self.compared_to})"
        return f"{against}: {'within' if kept else 'dropped by more than'} {self.max_drop:g}"

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
