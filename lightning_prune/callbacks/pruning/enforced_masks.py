"""The masks of a pruner, enforced on the network and its optimizers."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer

from lightning_prune.callbacks.pruning.regrowing import Regrowing
from lightning_prune.callbacks.trainer.lightning_packages import overrides
from lightning_prune.callbacks.trainer.listeners import notify
from lightning_prune.masks.enforcer import MaskEnforcer
from lightning_prune.masks.regrowth import Regrowth
from lightning_prune.pruners.mask_pruner import MaskPruner
from lightning_prune.pruners.pruner import Pruner


class EnforcedMasks:
    """Keeps masked weights at zero during training, and regrows some of them; empty for pruners without masks.

    Args:
        pruner: The pruner.
        regrowth: How many masked weights are exchanged for others, and how often; None for masks that only grow.
    """

    def __init__(self, pruner: Pruner, regrowth: Regrowth | None) -> None:
        self._pruner, self._regrowing = pruner, Regrowing(regrowth)
        self._enforcer = MaskEnforcer({}, {})

    def begin_training(self) -> None:
        """Reset the counter of optimizer steps."""
        self._regrowing.begin_training()

    def enforce(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Enforce the current masks of the pruner from now on, in place of earlier ones."""
        self.release()
        if isinstance(self._pruner, MaskPruner):
            self._enforcer = self._pruner.enforcer(pl_module)
            self._enforcer.hold(trainer.strategy.optimizers)

    def apply(self) -> None:
        """Zero the masked weights, which callbacks or the training step may have changed."""
        self._enforcer.apply()

    def before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Regrow weights if it is time, and exclude masked weights from the norm that gradient clipping computes."""
        self._regrow(trainer, pl_module, optimizer)
        if trainer.gradient_clip_val or overrides(pl_module, "configure_gradient_clipping"):
            self._enforcer.mask_gradients(optimizer)

    def release(self) -> None:
        """Remove all hooks from the optimizers."""
        self._enforcer.release()

    def state_dict(self) -> dict[int, int]:
        """State of the regrowth as plain numbers; the masks are part of the pruner's state."""
        return self._regrowing.state_dict()

    def load_state_dict(self, state: dict[int, int]) -> None:
        """Restore what ``state_dict`` returned."""
        self._regrowing.load_state_dict(state)

    def _regrow(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        if not isinstance(self._pruner, MaskPruner):
            return
        before = self._pruner.masks
        changed = self._regrowing.exchange_if_due(trainer, pl_module, optimizer, before)
        if changed:
            self._pruner.masks = {**before, **changed}
            self._enforcer.replace(changed)
            count = sum(int(torch.count_nonzero(mask & ~before[name])) for name, mask in changed.items())
            notify(trainer, "on_regrow", pl_module, count)
