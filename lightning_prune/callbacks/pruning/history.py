"""Record of the pruning events, which is saved in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_prune.surgery.report import Report


class History:
    """Record of the events so far, with the metrics of the validation before each, as plain numbers."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._metrics: dict[str, float] = {}
        self._earlier: dict[str, Tensor] = {}

    def begin_validation(self, trainer: pl.Trainer) -> None:
        """Note which metrics were logged before this validation."""
        self._earlier = dict(trainer.callback_metrics)

    def end_validation(self, trainer: pl.Trainer) -> None:
        """Record the scalar metrics that this validation logged, except those that are not finite."""
        new = {name: v for name, v in trainer.callback_metrics.items() if v is not self._earlier.get(name)}
        values = {name: float(value) for name, value in new.items() if value.numel() == 1}
        self._metrics = {name: value for name, value in values.items() if math.isfinite(value)}

    def add(self, trainer: pl.Trainer, event: int, report: Report) -> None:
        """Add event number ``event``, counted from 1."""
        self.events.append(
            {
                "event": event,
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "sparsity": report.sparsity,
                "parameters": [report.before.params, report.after.params],
                "nonzero": [report.before.nonzero, report.after.nonzero],
                "macs": [report.before.macs, report.after.macs],
                "metrics": self._metrics,
            }
        )
        if report.plan.removed_modules:
            self.events[-1]["removed"] = list(report.plan.removed_modules)

    def roll_back(self, state: Mapping[str, Any]) -> None:
        """Return to ``state``; later events are kept and marked as rolled back."""
        since = [{**event, "rolled_back": True} for event in self.events[len(state["events"]) :]]
        self.events, self._metrics = [*state["events"], *since], dict(state["metrics"])

    def state_dict(self) -> dict[str, Any]:
        """State as plain numbers."""
        return {"events": list(self.events), "metrics": dict(self._metrics)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.events, self._metrics = list(state["events"]), dict(state["metrics"])
