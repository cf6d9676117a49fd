"""Network slimming's penalty as a callback."""

from __future__ import annotations

import math

import lightning.pytorch as pl
from torch.optim import Optimizer

from lightning_prune.callbacks.trainer.lightning_packages import Callback, MisconfigurationException
from lightning_prune.callbacks.trainer.listeners import as_misconfiguration
from lightning_prune.callbacks.trainer.training_time import time_of
from lightning_prune.criteria.batchnorm import batch_norm_scales
from lightning_prune.penalties import add_l1_subgradient, slimming_gammas
from lightning_prune.schedules.schedule import Schedule


class SlimmingPenalty(Callback):
    """L1 on the scales γ of all batch norms (Liu et al. 2017, 'network slimming').

    The subgradient strength · sign(γ) is added to gradients that are unscaled and fully accumulated, once for every
    optimizer step and before gradient clipping; the loss, its curve and activation gradients stay as they are. The
    penalty is logged as ``penalty/slimming``.

    Args:
        strength: Weight of Σ|γ| in the loss, 1e-5 to 1e-3 as a rule; at least 0.
        schedule: How much of the strength is in force; all of it from the beginning without one.

    Raises:
        MisconfigurationException: If ``strength`` is negative or not finite, or the network has no batch norm.
    """

    def __init__(self, strength: float = 1e-4, schedule: Schedule | None = None) -> None:
        check_strength(self, strength)
        self.strength, self.schedule = strength, schedule

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There must be something to penalise."""
        with as_misconfiguration():
            slimming_gammas(pl_module)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the subgradient to the γ that this optimizer is about to step."""
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        gammas = [gamma for gamma in batch_norm_scales(pl_module).values() if id(gamma) in stepped]
        share = 1.0 if self.schedule is None else self.schedule.fraction(time_of(trainer, self.schedule))
        add_l1_subgradient(gammas, self.strength * share)
        penalty = self.strength * share * float(sum(gamma.detach().abs().sum() for gamma in gammas))
        pl_module.log("penalty/slimming", penalty, on_step=False, on_epoch=True)


def check_strength(callback: Callback, strength: float) -> None:
    """Whether an argument ``strength`` is in range."""
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 <= strength < math.inf:
        name = type(callback).__name__
        raise MisconfigurationException(f"{name} strength={strength!r} must be a finite number, 0 or more")
