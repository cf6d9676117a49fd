"""``RecalibrateBatchNorm``: running statistics of batch norms for the pruned network."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch.nn.modules.batchnorm import _NormBase

from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning
from lightning_prune.callbacks.pruning.pruning_callbacks import check_pruning
from lightning_prune.callbacks.trainer.lightning_packages import Callback
from lightning_prune.callbacks.trainer.listeners import as_misconfiguration
from lightning_prune.network.argument_checks import check_integer
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report


class RecalibrateBatchNorm(Callback):
    """Recomputes the running statistics of batch norms after each pruning event, over the next training batches.

    The inputs of a batch norm change when channels or weights before it are removed. With a momentum of 0.1 the old
    statistics have an influence for about thirty batches, and single batches have a large weight. This callback resets
    the statistics, and weights all batches after the event equally (``momentum=None``, the cumulative average, as in
    ``torch.optim.swa_utils.update_bn``; use that function after ``prune_once``). It uses the batches of the training,
    at no extra cost. Batch norms in eval mode, such as frozen ones, do not change. A checkpoint that is saved at the
    event, before the next batch, holds reset statistics: mean 0 and variance 1.

    Args:
        batches: Number of training batches, at least 1, after which each batch norm has its own momentum again.

    Raises:
        MisconfigurationException: If ``batches`` is out of range, or the Trainer has no ``IterativePruning``.
    """

    def __init__(self, batches: int = 32) -> None:
        with as_misconfiguration():
            check_integer(self, "batches", batches, minimum=1)
        self.batches = batches
        self._left = 0
        self._momenta: dict[str, float | None] = {}  # original momenta, while batch norms are averaging

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the Trainer prunes, and that the network has batch norms."""
        check_pruning(trainer, self)
        if not _with_statistics(pl_module):
            rank_zero_warn(
                f"RecalibrateBatchNorm has no effect: {type(pl_module).__name__} has no batch norm with running "
                "statistics; remove the callback"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Resume averaging after a checkpoint; batch norms may have been removed with their blocks."""
        own = _with_statistics(pl_module)
        self._momenta = {name: momentum for name, momentum in self._momenta.items() if name in own}
        for name in self._momenta:
            own[name].momentum = None

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """End averaging, so that a batch norm that is removed with its block has its own momentum after a rollback.

        Averaging restarts after the event; if the event is held back, averaging has ended early.
        """
        self._end_averaging(pl_module)

    def on_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan, report: Report) -> None:
        """Reset the statistics, and begin averaging."""
        self._left = self.batches
        for name, module in _with_statistics(pl_module).items():
            if module.training:
                module.reset_running_stats()
                self._momenta.setdefault(name, module.momentum)
                module.momentum = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Count the batch; end averaging after the last one."""
        self._left = max(0, self._left - 1)
        if self._left == 0:
            self._end_averaging(pl_module)

    def on_rollback(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End averaging: the restored network has its own statistics."""
        self._end_averaging(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """End averaging."""
        if stage == "fit":
            self._end_averaging(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Number of remaining batches, and original momenta."""
        return {"left": self._left, "momenta": dict(self._momenta)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._left, self._momenta = state_dict["left"], dict(state_dict["momenta"])

    def _end_averaging(self, pl_module: pl.LightningModule) -> None:
        own = dict(pl_module.named_modules())
        for name, momentum in self._momenta.items():
            if name in own:
                own[name].momentum = momentum  # type: ignore[assignment]
        self._left, self._momenta = 0, {}


def _with_statistics(pl_module: pl.LightningModule) -> dict[str, _NormBase]:
    return {n: m for n, m in pl_module.named_modules() if isinstance(m, _NormBase) and m.track_running_stats}
