"""The network that was accepted last, and the files of all that were in one training."""

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

_STAYS = "It cannot come back: the network as it is stays."
_TAKES_ITS_PLACE = "The network that was resumed takes its place: after a drop it comes back."
_UNJUDGED = (
    "The network that was resumed has not been judged since its last event: it takes its place if it is accepted; if "
    "it has dropped, it stays as it is and the training ends."
)


class AcceptedNetwork:
    """One folder beside the logs for a training and all that resume it; it is made when the first file is written.

    Any checkpoint of the training may name any of the files, so all of them stay until the training ends. Every file
    has a name of its own, which is kept here once it is complete.

    Attributes:
        last: File of the network that was accepted last; None until it is written.
        events: How many events had led to that network.
    """

    def __init__(self) -> None:
        self.last: RollbackCheckpoint | None = None
        self.events = 0
        self._folder: str | None = None
        self._operating = False  # between the first tensor that comes back and the last

    def begin(self, trainer: pl.Trainer) -> None:
        """Choose the folder, or go on with that of a checkpoint, unless it was made on another machine."""
        logs = trainer.log_dir or trainer.default_root_dir
        folder = join(logs if "://" in logs else abspath(logs), f"accepted-{uuid4().hex[:12]}")
        if self._folder is not None and get_filesystem(self._folder).exists(dirname(self._folder)):
            folder = self._folder
        self._folder, self._operating = trainer.strategy.broadcast(folder), False

    def is_current(self, trainer: pl.Trainer) -> bool:
        """Whether no event has followed."""
        return count_events(trainer) == self.events

    def replace(self, trainer: pl.Trainer) -> None:
        """The network as it is is accepted, and has yet to be written."""
        self._remove_stray(trainer)
        self.last, self.events = None, count_events(trainer)

    def write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        """Write the network as it is, which is that of this epoch; all ranks take part."""
        assert self._folder is not None
        path = trainer.strategy.broadcast(join(self._folder, f"{uuid4().hex[:12]}.ckpt"))
        self.last, self.events = RollbackCheckpoint.write(trainer, pl_module, path, epoch), count_events(trainer)

    def is_there(self, trainer: pl.Trainer) -> bool:
        """Whether it is written, and every rank can read the file."""
        if self.last is None:
            return False
        found = get_filesystem(self.last.path).exists(self.last.path)
        return trainer.strategy.reduce_boolean_decision(found, all=True)

    def is_lost(self, trainer: pl.Trainer, starting: bool = False) -> bool:
        """Whether it was written, and some rank cannot read the file; says so, and what happens now."""
        if self.last is None or self.is_there(trainer):
            return False
        now = _STAYS if not starting else _TAKES_ITS_PLACE if self.is_current(trainer) else _UNJUDGED
        rank_zero_warn(
            f"AccuracyGuard: the accepted network of epoch {self.last.epoch} is not at {self.last.path!r}: the "
            f"training that wrote it has ended and removed it, or the file was not taken along. {now}"
        )
        return True

    def restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Go back to it; returns the content of the file."""
        assert self.last is not None
        self._operating = True
        checkpoint = self.last.restore(trainer, pl_module)
        self._operating = False
        return checkpoint

    def end(self, trainer: pl.Trainer) -> None:
        """No file is needed any longer."""
        self._remove_stray(trainer)
        if self._folder is not None and trainer.is_global_zero:
            self._remove_all(trainer, self._folder)
        self.last = self._folder = None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for a checkpoint of the network as it is."""
        if self._operating:
            raise RuntimeError(
                "no checkpoint is saved: the training was interrupted in the middle of a rollback, which leaves the "
                "network half brought back. Resume from the last checkpoint before."
            )
        snapshot = None if self.last is None else {"path": self.last.path, "epoch": self.last.epoch}
        return {"snapshot": snapshot, "folder": self._folder, "events": self.events}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; old ones know of no folder, or of no file."""
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
        """Without a folder, each file lay beside the logs."""
        if self.last is not None and dirname(self.last.path) != self._folder:
            trainer.strategy.remove_checkpoint(self.last.path)
