"""Loading pruned checkpoints in a Trainer that does not prune."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_prune.manifest import track_shapes


class PrunedCheckpoints(Callback):
    """Lets ``trainer.test(model, ckpt_path=...)`` and the like load pruned checkpoints into a dense model.

    ``IterativePruning`` does the same; this one is for Trainers without it.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Prepare the module before anything is loaded into it."""
        track_shapes(pl_module)
