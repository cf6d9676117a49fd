"""The network that was accepted last, and the files of all networks accepted in one training."""

from __future__ import annotations

from os.path import abspath, dirname, join
from typing import Any
from uuid import uuid4

import lightning.pytorch as pl
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.callbacks.guard.rollback_checkpoint import RollbackCheckpoint
from lightning_prune.callbacks.loading import synchronous_io
from lightning_prune.callbacks.pruning.pruning_callbacks import count_events

_NOT_RESTORED = "It cannot be restored: the current network is kept."
_REPLACED = "The resumed network replaces it: a rollback restores that one."
_UNJUDGED = (
    "The resumed network has not been validated since its last event: it replaces the accepted network if it is "
    "accepted; if its metric has dropped, it is kept and the training ends."
)


class AcceptedNetwork:
    """The network that was accepted last, and the folder of its file.

    A training and all that resume it share one folder next to the logs, created with the first file. Any checkpoint of
    the training may refer to any of the files, so all of them are kept until the training ends. Each file has its own
    name, which is recorded here once the file is complete.

    Attributes:
        last: File of the accepted network; None until it is written.
        events: Number of events that led to the accepted network.
    """

    def __init__(self) -> None:
        self.last: RollbackCheckpoint | None = None
        self.events = 0
        self._folder: str | None = None
        self._restoring = False  # while some tensors are restored and others are not

    def begin(self, trainer: pl.Trainer) -> None:
        """Choose a new folder, or keep that of a checkpoint if its parent exists on this machine."""
        logs = trainer.log_dir or trainer.default_root_dir
        folder = join(logs if "://" in logs else abspath(logs), f"accepted-{uuid4().hex[:12]}")
        if self._folder is not None and get_filesystem(self._folder).exists(dirname(self._folder)):
            folder = self._folder
        self._folder, self._restoring = trainer.strategy.broadcast(folder), False

    def is_current(self, trainer: pl.Trainer) -> bool:
        """Whether no event has followed the accepted network."""
        return count_events(trainer) == self.events

    def replace(self, trainer: pl.Trainer) -> None:
        """Accept the current network, which is still to be written."""
        self._remove_stray(trainer)
        self.last, self.events = None, count_events(trainer)

    def write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        """Write the current network, validated in ``epoch``; all ranks take part."""
        assert self._folder is not None
        path = trainer.strategy.broadcast(join(self._folder, f"{uuid4().hex[:12]}.ckpt"))
        self.last, self.events = RollbackCheckpoint.write(trainer, pl_module, path, epoch), count_events(trainer)

    def is_there(self, trainer: pl.Trainer) -> bool:
        """Whether the file is written, and every rank can read it."""
        if self.last is None:
            return False
        found = get_filesystem(self.last.path).exists(self.last.path)
        return trainer.strategy.reduce_boolean_decision(found, all=True)

    def is_lost(self, trainer: pl.Trainer, starting: bool = False) -> bool:
        """Whether the file was written, but some rank cannot read it; warns of the consequence."""
        if self.last is None or self.is_there(trainer):
            return False
        now = _NOT_RESTORED if not starting else _REPLACED if self.is_current(trainer) else _UNJUDGED
        rank_zero_warn(
            f"AccuracyGuard: the accepted network of epoch {self.last.epoch} is not at {self.last.path!r}: the "
            f"training that wrote it has ended and removed it, or the file was not copied to this machine. {now}"
        )
        return True

    def restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Restore the accepted network; returns the content of the file."""
        assert self.last is not None
        self._restoring = True
        checkpoint = self.last.restore(trainer, pl_module)
        self._restoring = False
        return checkpoint

    def end(self, trainer: pl.Trainer) -> None:
        """Remove all files at the end of the training."""
        self._remove_stray(trainer)
        if self._folder is not None and trainer.is_global_zero:
            self._remove_all(trainer, self._folder)
        self.last = self._folder = None

    def state_dict(self) -> dict[str, Any]:
        """State as plain numbers and strings.

        Raises:
            RuntimeError: If a rollback was interrupted.
        """
        if self._restoring:
            raise RuntimeError(
                "no checkpoint is saved: the training was interrupted in the middle of a rollback, which leaves the "
                "network half restored. Resume from the last checkpoint before."
            )
        snapshot = None if self.last is None else {"path": self.last.path, "epoch": self.last.epoch}
        return {"snapshot": snapshot, "folder": self._folder, "events": self.events}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; checkpoints of early versions have no folder, or no file."""
        snapshot = state_dict.get("snapshot")
        self.last = None if snapshot is None else RollbackCheckpoint(**snapshot)
        self._folder, self.events = state_dict.get("folder"), state_dict.get("events", 0)

    def _remove_all(self, trainer: pl.Trainer, folder: str) -> None:
        files = get_filesystem(folder)
        if files.exists(folder):
            for path in files.ls(folder, detail=False):
                synchronous_io(trainer).remove_checkpoint(files.unstrip_protocol(path) if "://" in folder else path)
            files.rmdir(folder)

    def _remove_stray(self, trainer: pl.Trainer) -> None:
        """Remove a file of an early version, which wrote next to the logs."""
        if self.last is not None and dirname(self.last.path) != self._folder:
            trainer.strategy.remove_checkpoint(self.last.path)
