"""What a pruner's statistics see of a training."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.callbacks.pruning.checks import check_gradients, warn_unfollowed
from lightning_prune.callbacks.pruning.decide import unseen_anywhere
from lightning_prune.callbacks.trainer.ranks import over_ranks
from lightning_prune.pruners.pruner import Pruner

_CERTAIN = 50  # batches after which a layer without gradients is not just taking turns with another


class Observing:
    """Lets the statistics of a pruner, where its criterion needs any, gather in a Trainer.

    Attributes:
        complete: Whether everything that is observed has been reached.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._statistics, self._pruner = pruner.statistics, pruner
        self.complete = False
        self._frozen: set[str] = set()

    def prepared(self, pl_module: pl.LightningModule) -> None:
        """The pruner observes what trains now."""
        self._frozen = {name for name, parameter in pl_module.named_parameters() if not parameter.requires_grad}

    def begin_step(self, pl_module: pl.LightningModule, batch_idx: int) -> None:
        """A training batch begins; with an epoch, layers may have been unfrozen."""
        if self._statistics is None:
            return
        if batch_idx == 0 and any(p.requires_grad for name, p in pl_module.named_parameters() if name in self._frozen):
            self._pruner.observe(pl_module)
            self.prepared(pl_module)
            self.complete = False
        self._statistics.begin_step(batch_idx)

    def begin_backward(self, trainer: pl.Trainer, loss: Tensor) -> None:
        """Look at a loss, which AMP may have scaled."""
        if self._statistics is not None:
            self._statistics.before_backward(loss, _scale(trainer))

    def end_backward(self, trainer: pl.Trainer) -> None:
        """Take in one backward pass."""
        if self._statistics is not None:
            self._statistics.commit(_scale(trainer))

    def begin_optimizer_step(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Look at the gradients, from which AMP has taken its scale unless the optimizer does that itself."""
        if self._statistics is not None:
            own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            scaled = getattr(optimizer, "_step_supports_amp_scaling", False)
            self._statistics.before_optimizer_step(own, _scale(trainer) if scaled else 1.0)

    def end_step(self) -> None:
        """A training batch has ended."""
        if self._statistics is not None:
            self._statistics.end_step()

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batches: int) -> None:
        """Say if the first batches do not reach what has to be ranked, or train what the analysis has not seen.

        Raises:
            MisconfigurationException: If after so many ``batches`` it is certain that gradients never will.
        """
        if self.complete or (batches > _CERTAIN and not trainer.is_last_batch):
            return
        unseen = unseen_anywhere(trainer, self._pruner)
        if unseen is not None:
            warn_unfollowed(self._pruner, pl_module)
            check_gradients(self._pruner, pl_module, unseen, batches >= _CERTAIN or trainer.is_last_batch)
            self.complete = not unseen

    def end(self) -> None:
        """Take all hooks off the network."""
        if self._statistics is not None:
            self._statistics.detach()

    def move_to(self, device: Any) -> None:
        """The totals have come from a file."""
        if self._statistics is not None:
            self._statistics.totals = {name: total.to(device) for name, total in self._statistics.totals.items()}

    def fill_in(self, trainer: pl.Trainer, state: dict[str, Any]) -> None:
        """Let a pruner's ``state`` say the same on all ranks, of which only rank 0 writes a file and all read it.

        Where totals add up, so do their means again.
        """
        if self._statistics is not None:
            state["statistics"]["totals"] = over_ranks(trainer, self._statistics.totals, "mean")


def _scale(trainer: pl.Trainer) -> float:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())
