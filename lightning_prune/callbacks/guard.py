"""The guard: what pruning must not cost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_prune.callbacks.pruning import IterativePruning
from lightning_prune.callbacks.support import tell

Reference = Literal["previous", "baseline", "best"]


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
        if self.reference is None:
            return "baseline"
        return f"{'kept' if self.kept else 'dropped'} ({self.value - self.reference:+.4f})"


class AccuracyGuard(Callback):
    """Holds pruning to an accuracy.

    The guard judges the last validation before each event, and the last one of the training: fine-tuning between two
    events may dip as it likes. The validation before the first event is the baseline.

    Args:
        monitor: Name of a metric that validation logs, such as ``"val_acc"``.
        max_drop: How much worse than the reference it may be, in the metric's own unit; at least 0.
        mode: ``"max"`` if higher is better, ``"min"`` if lower is.
        compared_to: ``"baseline"`` (the dense network), ``"previous"`` (the judgement before) or ``"best"`` (the best
            judgement so far).
        on_drop: ``"stop"`` ends the training; ``"pause"`` holds the next event back until the metric has recovered.

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
        self._latest: tuple[int, float] | None = None  # (epoch, value) of the last validation

    @property
    def state_key(self) -> str:
        """One key for each monitored metric."""
        return self._generate_state_key(monitor=self.monitor, compared_to=self.compared_to)

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
        if not trainer.sanity_checking:
            self._latest = (trainer.current_epoch, self._value(trainer))

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """Judge the network that is about to be pruned."""
        verdict = self._judge(trainer)
        if verdict is None or verdict.kept:
            return
        pruning.pause(verdict.says)
        if self.on_drop == "stop":
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge what the last event left."""
        verdict = self._judge(trainer)
        if verdict is not None and not verdict.kept:
            rank_zero_warn(f"AccuracyGuard, at the end of the training: {verdict.says}")

    def state_dict(self) -> dict[str, Any]:
        """Verdicts and the last measurement, as plain numbers and strings."""
        return {"verdicts": [asdict(verdict) for verdict in self.verdicts], "latest": self._latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.verdicts = [Verdict(**verdict) for verdict in state_dict["verdicts"]]
        self._latest = None if state_dict["latest"] is None else tuple(state_dict["latest"])

    def _judge(self, trainer: pl.Trainer) -> Verdict | None:
        """The verdict on the last validation; a validation is judged once."""
        if self._latest is None:
            return None
        epoch, value = self._latest
        if self.verdicts and self.verdicts[-1].epoch == epoch:
            return self.verdicts[-1]
        reference = self._reference()
        drop = 0.0 if reference is None else (reference - value if self.mode == "max" else value - reference)
        kept = drop <= self.max_drop + 1e-12 and not math.isnan(value)
        verdict = Verdict(epoch, value, reference, kept, self._words(value, reference, kept))
        self.verdicts.append(verdict)
        rank_zero_info(f"AccuracyGuard: {verdict.says}")
        tell(trainer, "on_verdict", verdict)
        return verdict

    def _reference(self) -> float | None:
        kept = [verdict.value for verdict in self.verdicts if verdict.kept]
        if not kept:
            return None
        if self.compared_to == "best":
            return max(kept) if self.mode == "max" else min(kept)
        return kept[0] if self.compared_to == "baseline" else kept[-1]

    def _words(self, value: float, reference: float | None, kept: bool) -> str:
        if reference is None:
            return f"{self.monitor} {value:.4f} is the baseline"
        against = f"{self.monitor} {value:.4f} against {reference:.4f} ({self.compared_to})"
        action = {"stop": "training stops", "pause": "pruning pauses"}[self.on_drop]
        return f"{against}: within {self.max_drop:g}" if kept else f"{against}: dropped, {action}"

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
