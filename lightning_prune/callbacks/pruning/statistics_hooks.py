"""Hooks of a Trainer that feed the statistics of a pruner."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.callbacks.pruning.checks import check_gradients, warn_unanalyzed
from lightning_prune.callbacks.pruning.decide import unseen_anywhere
from lightning_prune.callbacks.trainer.ranks import over_ranks
from lightning_prune.pruners.pruner import Pruner

_CERTAIN = 50  # batches after which a layer without gradients cannot be one that alternates with another


class StatisticsHooks:
    """Feeds the statistics that the criterion of a pruner gathers; does nothing if it gathers none.

    Attributes:
        complete: Whether every observed layer has been reached by gradients.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._statistics, self._pruner = pruner.statistics, pruner
        self.complete = False
        self._frozen: set[str] = set()

    def note_frozen(self, pl_module: pl.LightningModule) -> None:
        """Record which parameters are frozen, and therefore not observed."""
        self._frozen = {name for name, parameter in pl_module.named_parameters() if not parameter.requires_grad}

    def begin_step(self, pl_module: pl.LightningModule, batch_idx: int) -> None:
        """Begin a training batch; at the beginning of an epoch, observe parameters that have been unfrozen."""
        if self._statistics is None:
            return
        if batch_idx == 0 and any(p.requires_grad for name, p in pl_module.named_parameters() if name in self._frozen):
            self._pruner.observe(pl_module)
            self.note_frozen(pl_module)
            self.complete = False
        self._statistics.begin_step(batch_idx)

    def begin_backward(self, trainer: pl.Trainer, loss: Tensor) -> None:
        """Pass on the loss, and the factor by which AMP has scaled it."""
        if self._statistics is not None:
            self._statistics.before_backward(loss, _scale(trainer))

    def end_backward(self, trainer: pl.Trainer) -> None:
        """Add one backward pass."""
        if self._statistics is not None:
            self._statistics.commit(_scale(trainer))

    def begin_optimizer_step(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Observe the gradients, which AMP has unscaled unless the optimizer does so itself."""
        if self._statistics is not None:
            own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            scaled = getattr(optimizer, "_step_supports_amp_scaling", False)
            self._statistics.before_optimizer_step(own, _scale(trainer) if scaled else 1.0)

    def end_step(self) -> None:
        """End a training batch."""
        if self._statistics is not None:
            self._statistics.end_step()

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batches: int) -> None:
        """Check that the first batches reach every layer that is to be scored, and train none that was not analyzed.

        Raises:
            MisconfigurationException: If a layer has no gradient after ``batches`` batches, and none is to be expected.
        """
        if self.complete or (batches > _CERTAIN and not trainer.is_last_batch):
            return
        unseen = unseen_anywhere(trainer, self._pruner)
        if unseen is not None:
            warn_unanalyzed(self._pruner, pl_module)
            check_gradients(self._pruner, pl_module, unseen, batches >= _CERTAIN or trainer.is_last_batch)
            self.complete = not unseen

    def end(self) -> None:
        """Remove all hooks from the network."""
        if self._statistics is not None:
            self._statistics.detach()

    def move_to(self, device: Any) -> None:
        """Move the totals, which were loaded from a file, to a device."""
        if self._statistics is not None:
            self._statistics.totals = {name: total.to(device) for name, total in self._statistics.totals.items()}

    def reduce_state(self, trainer: pl.Trainer, state: dict[str, Any]) -> None:
        """Replace the totals in a pruner's ``state`` by their means over ranks.

        Rank 0 writes the checkpoint, and all ranks load it. The sum of totals over ranks stays the same.
        """
        if self._statistics is not None:
            state["statistics"]["totals"] = over_ranks(trainer, self._statistics.totals, "mean")


def _scale(trainer: pl.Trainer) -> float:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())
