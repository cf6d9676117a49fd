"""``FinetuneLR``: scaled learning rates for fine-tuning."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lightning_prune.callbacks.pruning.pruning_callbacks import check_pruning
from lightning_prune.callbacks.retraining.learning_rates import scale_rates
from lightning_prune.callbacks.trainer.lightning_packages import Callback
from lightning_prune.callbacks.trainer.listeners import as_misconfiguration
from lightning_prune.network.argument_checks import check_number
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report


class FinetuneLR(Callback):
    """Multiplies all learning rates by a factor at the first pruning event.

    Learning rate schedulers continue, with all of their rates scaled. Later events do not scale again.

    Args:
        scale: Factor, above 0; typically 0.1.

    Raises:
        MisconfigurationException: If ``scale`` is not a finite number above 0, or the Trainer has no
            ``IterativePruning``.
    """

    def __init__(self, scale: float = 0.1) -> None:
        with as_misconfiguration():
            check_number(self, "scale", scale, above=0)
        self.scale = scale
        self._scaled = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Reset the state of an earlier training."""
        if stage == "fit":
            self._scaled = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the Trainer prunes."""
        check_pruning(trainer, self)

    def on_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan, report: Report) -> None:
        """Scale the learning rates at the first event."""
        if not self._scaled:
            scale_rates(trainer, self.scale)
            self._scaled = True

    def state_dict(self) -> dict[str, Any]:
        """Whether rates were scaled; the rates themselves are in the states of optimizers and schedulers."""
        return {"scaled": self._scaled}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._scaled = state_dict["scaled"]
