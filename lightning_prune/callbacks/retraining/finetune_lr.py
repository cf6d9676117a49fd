"""Smaller learning rates once pruning has begun."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl

from lightning_prune.callbacks.pruning.pruning_callbacks import check_pruning
from lightning_prune.callbacks.retraining.learning_rates import scale_rates
from lightning_prune.callbacks.trainer.lightning_packages import Callback, MisconfigurationException
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report


class FinetuneLR(Callback):
    """From the first pruning event on, every learning rate is ``scale`` times what it would be.

    Schedulers go on, with all of their rates scaled. It happens once: later events do not scale again.

    Args:
        scale: Factor, above 0; 0.1 as a rule.

    Raises:
        MisconfigurationException: If ``scale`` is not a finite number above 0, or no pruning is there.
    """

    def __init__(self, scale: float = 0.1) -> None:
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise MisconfigurationException(f"FinetuneLR scale={scale!r} must be a finite number above 0")
        self.scale = scale
        self._scaled = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A new training has new learning rates."""
        if stage == "fit":
            self._scaled = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There must be events."""
        check_pruning(trainer, self)

    def on_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan, report: Report) -> None:
        """Scale, once."""
        if not self._scaled:
            scale_rates(trainer, self.scale)
            self._scaled = True

    def state_dict(self) -> dict[str, Any]:
        """Whether it has happened; checkpoints hold the rates themselves."""
        return {"scaled": self._scaled}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._scaled = state_dict["scaled"]
