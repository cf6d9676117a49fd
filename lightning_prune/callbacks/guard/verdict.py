"""Verdicts of ``AccuracyGuard``, and the bound that they are based on."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Reference = Literal["previous", "baseline", "best"]

_FLOAT32_ROUNDING = 1e-6  # metrics are logged in float32: 1.0 - 0.9 must be within 0.1

_BETTER_LOW = ("loss", "nll", "error", "mae", "mse", "rmse", "wer", "cer", "fid", "perplexity", "ppl")


def sounds_better_low(metric: str) -> bool:
    """Whether the name of a metric suggests that lower values are better.

    Example:
        >>> [sounds_better_low(name) for name in ("val_loss", "val/MSE", "val_acc", "lossless_score")]
        [True, True, False, False]
    """
    return any(word in _BETTER_LOW for word in re.split(r"[^a-z]+", metric.lower()))


@dataclass(frozen=True)
class Verdict:
    """Verdict of the guard on one validation.

    Attributes:
        epoch: Epoch of the validation.
        value: Monitored metric.
        reference: Value that it was compared with; None for the baseline itself.
        kept: Whether the drop was within bounds.
        says: Verdict as a sentence, for logs and warnings.
        rolled_back: Whether the last accepted network was restored.
    """

    epoch: int
    value: float
    reference: float | None
    kept: bool
    says: str
    rolled_back: bool = False

    @property
    def short(self) -> str:
        """Verdict as one or two words, for tables."""
        what = "rolled back" if self.rolled_back else "kept" if self.kept else "dropped"
        if math.isnan(self.value):
            return f"{what} (nan)"
        if self.reference is None:
            return "baseline"
        return f"{what} ({self.value - self.reference:+.4f})"


@dataclass(frozen=True)
class Bound:
    """Largest accepted drop of a metric below a reference.

    Attributes:
        monitor: Name of the metric.
        max_drop: Largest accepted drop, in the metric's unit.
        mode: ``"max"`` if higher is better, ``"min"`` if lower is.
        compared_to: Reference, see ``AccuracyGuard``.
    """

    monitor: str
    max_drop: float
    mode: Literal["max", "min"]
    compared_to: Reference

    def judge(self, epoch: int, value: float, verdicts: Sequence[Verdict]) -> Verdict:
        """The verdict on ``value``, given the earlier ``verdicts``."""
        reference = self._reference(verdicts)
        kept = self._is_kept(value, reference)
        return Verdict(epoch, value, reference, kept, self._words(value, reference, kept))

    def _reference(self, verdicts: Sequence[Verdict]) -> float | None:
        kept = [verdict.value for verdict in verdicts if verdict.kept]
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
        comparison = f"{self.monitor} {value:.4f} against {reference:.4f} ({self.compared_to})"
        return f"{comparison}: {'within' if kept else 'dropped by more than'} {self.max_drop:g}"
