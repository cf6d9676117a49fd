"""Validation metric of a network with each of its blocks ablated, for the ``Sensitivity`` criterion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torchmetrics import Metric

from lightning_prune.budgets.budget import Budget
from lightning_prune.callbacks.trainer.lightning_packages import MisconfigurationException
from lightning_prune.criteria.criterion import Criterion
from lightning_prune.criteria.sensitivity import Sensitivity
from lightning_prune.network.copies import copy_of
from lightning_prune.network.eager import running_eagerly
from lightning_prune.network.example_input import Example
from lightning_prune.pruners.block_pruner import BlockPruner


def ablation_losses(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    pruner: BlockPruner,
    example: Example | None,
    fraction: float,
    budget: Budget,
) -> dict[str, Tensor]:
    """Validation loss without each block, and with all blocks under ``""``; empty if no block is to be removed.

    All ranks must call this.

    A copy of the module is evaluated, so that its metrics, batch norms and lists of outputs do not change.

    Raises:
        MisconfigurationException: If there are no validation data, or the metric is not logged.
    """
    assert isinstance(pruner.criterion, Sensitivity)
    try:
        due = pruner.is_due(pl_module, example, fraction, budget)
    except ValueError:  # raised again by ``plan``
        return {}
    if not due:
        return {}
    with _evaluation(trainer, pl_module, pruner.criterion) as (twin, loss):
        losses = pruner.ablation_losses(twin, example, loss)
    if not bool(torch.isfinite(losses[""])):
        raise MisconfigurationException(
            f"{pruner.criterion}: the metric of the network with all blocks is not finite; has the training diverged?"
        )
    return losses


def check_measurable(trainer: pl.Trainer, pl_module: pl.LightningModule, criterion: Criterion) -> None:
    """Measure the metric once before training, so that a missing one does not stop the training at its first event.

    Raises:
        MisconfigurationException: If there are no validation data, or the metric is not logged.
    """
    if isinstance(criterion, Sensitivity):
        with _evaluation(trainer, pl_module, criterion) as (_, loss):
            loss()


@contextmanager
def _evaluation(
    trainer: pl.Trainer, pl_module: pl.LightningModule, criterion: Sensitivity
) -> Iterator[tuple[Any, Callable[[], Tensor]]]:
    """A copy of the module, and a function that evaluates its loss."""
    with isolate_rng(), running_eagerly(), torch.no_grad():
        batches = _batches(trainer, pl_module, criterion)
        twin: Any = copy_of(pl_module)
        twin.trainer = trainer
        twin.eval()
        yield twin, lambda: _loss(trainer, twin, batches, criterion)


def _batches(trainer: pl.Trainer, pl_module: pl.LightningModule, criterion: Sensitivity) -> list[Any]:
    """The first batches of the first validation loader, as validation steps receive them."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    if loop._combined_loader is None:  # no validation has run yet
        trainer.validating = True
        loop.setup_data()
        trainer.training = True
    if loop._combined_loader is None or not loop.max_batches:
        raise MisconfigurationException(
            f"{criterion} measures on validation data, but no validation runs in this training; give a validation "
            "loader (and no limit_val_batches=0), or use BlockInfluence"
        )
    count = int(min(criterion.batches, loop.max_batches[0]))
    batches = []
    for batch in islice(loop._combined_loader.flattened[0], count):
        batch = pl_module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)
        batches.append(trainer.strategy.batch_to_device(batch, dataloader_idx=0))
    return batches


def _loss(trainer: pl.Trainer, twin: pl.LightningModule, batches: list[Any], criterion: Sensitivity) -> Tensor:
    """Metric to be minimized, averaged over the batches of all ranks."""
    for module in twin.modules():
        if isinstance(module, Metric):
            module.reset()
    logged, loop = _Logged(), trainer.fit_loop.epoch_loop.val_loop
    several = loop.num_dataloaders > 1
    vars(twin)["log"] = logged.log
    with isolate_rng(), trainer.precision_plugin.val_step_context():  # same random numbers in every evaluation
        for index, batch in enumerate(batches):
            arguments = loop._build_kwargs(batch, index, 0 if several else None)
            logged.batch = batch
            output = twin.validation_step(*loop._build_step_args_from_hook_kwargs(arguments, "validation_step"))
            loss = output.get("loss") if isinstance(output, Mapping) else output
            if isinstance(loss, Tensor):
                logged.log("", loss)
        name = "" if criterion.monitor is None else criterion.monitor
        if name and name not in logged.names:
            twin.on_validation_epoch_end()
    if name not in logged.names:
        raise MisconfigurationException(_unknown(criterion, logged))
    sums = trainer.strategy.reduce(logged.sums(name).to(trainer.strategy.root_device), reduce_op="sum")
    value = sums[0] / sums[1]  # type: ignore[index]
    return -value if criterion.monitor is not None and criterion.mode == "max" else value


def _unknown(criterion: Sensitivity, logged: _Logged) -> str:
    names = ", ".join(sorted(filter(None, logged.names))) or "nothing"
    if criterion.monitor is None:
        return (
            f"{criterion} compares the losses that validation_step returns, and it returns none; it logs {names}: "
            "name one of these, such as Sensitivity(monitor='val_acc', mode='max')"
        )
    return f"{criterion} monitor={criterion.monitor!r} is not logged by validation; it logs {names}"


class _Logged:
    """Collects what a module logs, in place of the Trainer: means over examples, and torchmetrics."""

    def __init__(self) -> None:
        self.batch: Any = None
        self._sums: dict[str, Tensor] = {}
        self._metrics: dict[str, Metric] = {}

    @property
    def names(self) -> set[str]:
        return {*self._sums, *self._metrics}

    def log(self, name: str, value: Any, *_: Any, batch_size: int | None = None, **__: Any) -> None:
        """Replacement for ``LightningModule.log``."""
        if isinstance(value, Metric):
            self._metrics[name] = value
            return
        count = extract_batch_size(self.batch) if batch_size is None else batch_size
        pair = torch.tensor([float(value) * count, count])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def sums(self, name: str) -> Tensor:
        """Sum over examples, and their number; torchmetrics are computed over all ranks already."""
        if name in self._metrics:
            return torch.tensor([float(self._metrics[name].compute()), 1.0])
        return self._sums[name]
