"""One decision for all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import lightning.pytorch as pl
from torch import Tensor

from lightning_prune.coupling import Example
from lightning_prune.pruner import Pruner
from lightning_prune.report import Report


def decide(
    trainer: pl.Trainer, pl_module: pl.LightningModule, pruner: Pruner, example: Example | None, fraction: float
) -> Report | ValueError:
    """The next event, planned on rank 0 from the statistics of all ranks.

    Or why there can be none: for good (``BudgetError``), or now (any other ``ValueError``).
    """
    if pruner.statistics is not None:
        pruner.statistics.totals = over_ranks(trainer, pruner.statistics.totals, "sum")
    decision: Report | ValueError | None = None
    if trainer.is_global_zero:
        try:
            decision = pruner.plan(pl_module, example, fraction)
        except ValueError as error:
            decision = error
    decided: Report | ValueError = trainer.strategy.broadcast(decision)  # type: ignore[assignment]
    return decided


def over_ranks(trainer: pl.Trainer, totals: Mapping[str, Tensor], how: Literal["sum", "mean"]) -> dict[str, Tensor]:
    """``totals`` over all ranks, which have the same names; every rank has to take part."""
    reduced: dict[str, Tensor] = {}
    for name in sorted(totals):  # `reduce` works in place
        reduced[name] = trainer.strategy.reduce(totals[name].clone(), reduce_op=how)  # type: ignore[assignment]
    return reduced
