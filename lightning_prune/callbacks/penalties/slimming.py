"""``SlimmingPenalty``: the L1 regularizer of network slimming."""

from __future__ import annotations

import lightning.pytorch as pl
from torch.optim import Optimizer

from lightning_prune.callbacks.trainer.lightning_packages import Callback
from lightning_prune.callbacks.trainer.listeners import as_misconfiguration
from lightning_prune.callbacks.trainer.training_time import time_of
from lightning_prune.criteria.batchnorm import batch_norm_scales
from lightning_prune.network.argument_checks import check_number
from lightning_prune.penalties import add_l1_subgradient, slimming_gammas
from lightning_prune.schedules.schedule import Schedule


class SlimmingPenalty(Callback):
    """L1 regularizer on the scales γ of all batch norms.

    Liu et al. 2017, 'Learning efficient convolutional networks through network slimming'.

    The subgradient strength · sign(γ) is added to the unscaled, fully accumulated gradients before each optimizer step
    and before gradient clipping; the logged loss and the gradients of activations do not change. The penalty is logged
    as ``penalty/slimming``.

    Args:
        strength: Weight of Σ|γ| in the loss, typically 1e-5 to 1e-3; at least 0.
        schedule: Schedule of the fraction of ``strength`` that is applied. Default: all of it throughout.

    Raises:
        MisconfigurationException: If ``strength`` is negative or not finite, or the network has no batch norm.
    """

    def __init__(self, strength: float = 1e-4, schedule: Schedule | None = None) -> None:
        check_strength(self, strength)
        self.strength, self.schedule = strength, schedule

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the network has batch norms."""
        with as_misconfiguration():
            slimming_gammas(pl_module)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the subgradient to the gradients of the γ that this optimizer updates."""
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        gammas = [gamma for gamma in batch_norm_scales(pl_module).values() if id(gamma) in stepped]
        share = 1.0 if self.schedule is None else self.schedule.fraction(time_of(trainer, self.schedule))
        add_l1_subgradient(gammas, self.strength * share)
        penalty = self.strength * share * float(sum(gamma.detach().abs().sum() for gamma in gammas))
        pl_module.log("penalty/slimming", penalty, on_step=False, on_epoch=True)


def check_strength(callback: Callback, strength: float) -> None:
    """Check the argument ``strength`` of a penalty.

    Raises:
        MisconfigurationException: If it is not a finite number of at least 0.
    """
    with as_misconfiguration():
        check_number(callback, "strength", strength, minimum=0)
