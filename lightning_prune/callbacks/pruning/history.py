"""What a pruner remembers of its events, for whoever reads a checkpoint later."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_prune.surgery.report import Report


class History:
    """The events so far, and what the last validation has measured: plain numbers, the same after a resume."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._metrics: dict[str, float] = {}
        self._known: dict[str, Tensor] = {}

    def begin_validation(self, trainer: pl.Trainer) -> None:
        """Note which metrics are older."""
        self._known = dict(trainer.callback_metrics)

    def end_validation(self, trainer: pl.Trainer) -> None:
        """Note what was measured; what is not finite says nothing."""
        new = {name: v for name, v in trainer.callback_metrics.items() if v is not self._known.get(name)}
        values = {name: float(value) for name, value in new.items() if value.numel() == 1}
        self._metrics = {name: value for name, value in values.items() if math.isfinite(value)}

    def add(self, trainer: pl.Trainer, event: int, report: Report) -> None:
        """Remember event number ``event``, counted from 1."""
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
        """The network is again what it was when ``state`` was saved; the events since then stay, marked."""
        since = [{**event, "rolled_back": True} for event in self.events[len(state["events"]) :]]
        self.events, self._metrics = [*state["events"], *since], dict(state["metrics"])

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"events": list(self.events), "metrics": dict(self._metrics)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        self.events, self._metrics = list(state["events"]), dict(state["metrics"])
