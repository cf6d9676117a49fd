"""Batch norms after surgery: their running statistics belong to a network that is gone."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch.nn.modules.batchnorm import _NormBase

from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning
from lightning_prune.callbacks.pruning.pruning_callbacks import check_pruning
from lightning_prune.callbacks.trainer.lightning_packages import Callback, MisconfigurationException
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report


class RecalibrateBatchNorm(Callback):
    """After every pruning event the running statistics of batch norms are the mean over the next training batches.

    What reaches a batch norm changes when channels or weights before it go. With a momentum of 0.1 traces of the old
    statistics remain for some thirty batches, and single batches count much; here each batch after the event counts
    the same, and nothing before it does (``momentum=None``, the cumulative average, as
    ``torch.optim.swa_utils.update_bn`` takes it; use that function after ``prune_once``). The batches are those of the
    training, so this costs nothing. Batch norms in eval mode, such as frozen ones, stay as they are. A checkpoint saved
    right at the event, before the next batch, has statistics of no batches: mean 0 and variance 1.

    Args:
        batches: Training batches that count, at least 1; then every batch norm has its own momentum again.

    Raises:
        MisconfigurationException: If ``batches`` is out of range, or nothing prunes.
    """

    def __init__(self, batches: int = 32) -> None:
        if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
            raise MisconfigurationException(
                f"RecalibrateBatchNorm batches={batches!r} must be a whole number of at least 1"
            )
        self.batches = batches
        self._left = 0
        self._momenta: dict[str, float | None] = {}  # of the batch norms that are averaging

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There must be events to recalibrate after, and something to recalibrate."""
        check_pruning(trainer, self)
        if not _with_statistics(pl_module):
            rank_zero_warn(
                f"RecalibrateBatchNorm has nothing to recalibrate: {type(pl_module).__name__} has no batch norm with "
                "running statistics; remove it"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on where a checkpoint was saved while batch norms were averaging; some may be gone with their blocks."""
        own = _with_statistics(pl_module)
        self._momenta = {name: momentum for name, momentum in self._momenta.items() if name in own}
        for name in self._momenta:
            own[name].momentum = None

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """Stop averaging: a batch norm that goes with its block has its own momentum when a rollback brings it back.

        After the event averaging begins anew. Where someone holds the event back, it has ended early.
        """
        self._give_back(pl_module)

    def on_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan, report: Report) -> None:
        """Begin anew."""
        self._left = self.batches
        for name, module in _with_statistics(pl_module).items():
            if module.training:
                module.reset_running_stats()
                self._momenta.setdefault(name, module.momentum)
                module.momentum = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """One batch more has counted."""
        self._left = max(0, self._left - 1)
        if self._left == 0:
            self._give_back(pl_module)

    def on_rollback(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The network that is back has its own statistics."""
        self._give_back(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The network keeps nothing of this."""
        if stage == "fit":
            self._give_back(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """How many batches are left, and the momenta to give back."""
        return {"left": self._left, "momenta": dict(self._momenta)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._left, self._momenta = state_dict["left"], dict(state_dict["momenta"])

    def _give_back(self, pl_module: pl.LightningModule) -> None:
        own = dict(pl_module.named_modules())
        for name, momentum in self._momenta.items():
            if name in own:
                own[name].momentum = momentum  # type: ignore[assignment]
        self._left, self._momenta = 0, {}


def _with_statistics(pl_module: pl.LightningModule) -> dict[str, _NormBase]:
    return {n: m for n, m in pl_module.named_modules() if isinstance(m, _NormBase) and m.track_running_stats}
