"""What a pruner's statistics see of a training."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lightning_prune.callbacks.checks import check_gradients, warn_unfollowed
from lightning_prune.callbacks.decision import over_ranks, unseen_anywhere
from lightning_prune.pruner import Pruner

_CERTAIN = 50  # batches after which a layer without gradients is not just taking turns with another


class Observing:
    """Lets the statistics of a pruner, where its criterion needs any, gather in a Trainer.

    Attributes:
        complete: Whether everything that is observed has been reached.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._statistics, self._pruner = pruner.statistics, pruner
        self.complete = False

    def begin_step(self, batch_idx: int) -> None:
        """A training batch begins."""
        if self._statistics is not None:
            self._statistics.begin_step(batch_idx)

    def end_backward(self, trainer: pl.Trainer) -> None:
        """Take in one backward pass, whose loss AMP may have scaled."""
        if self._statistics is not None:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self._statistics.commit(scaler.get_scale() if scaler is not None else 1.0)

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batches: int) -> None:
        """Say if the first batches do not reach what has to be ranked, or train what the analysis has not seen.

        Raises:
            MisconfigurationException: If after so many ``batches`` it is certain that gradients never will.
        """
        if self.complete:
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

        The mean of their totals adds up again.
        """
        if self._statistics is not None:
            state["statistics"]["totals"] = over_ranks(trainer, self._statistics.totals, "mean")
