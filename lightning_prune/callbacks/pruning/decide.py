"""One decision for all ranks, and the proof that all have carried it out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl

from lightning_prune.callbacks.pruning.block_ablation import compare
from lightning_prune.callbacks.pruning.due_events import PruningStep
from lightning_prune.callbacks.trainer.ranks import gathered, over_ranks
from lightning_prune.network.example_input import Example
from lightning_prune.network.sharded import is_sharded
from lightning_prune.pruners.block_pruner import BlockPruner
from lightning_prune.pruners.pruner import Pruner
from lightning_prune.surgery.report import Report


def decide(
    trainer: pl.Trainer, pl_module: pl.LightningModule, pruner: Pruner, example: Example | None, step: PruningStep
) -> Report | ValueError:
    """The next event, planned on rank 0 from the statistics of all ranks; on all ranks where each holds a part.

    Or why there can be none: for good (``BudgetError``), or now (any other ``ValueError``).
    """
    decision: Report | ValueError | None = None
    if isinstance(pruner, BlockPruner) and pruner.criterion.compares_losses:
        compare(trainer, pl_module, pruner, example, step.aim)
    with _statistics_of_all_ranks(trainer, pruner):
        if is_sharded(pl_module) or trainer.is_global_zero:
            budget = pruner.budget
            try:
                pruner.budget = step.scaled(budget)
                decision = pruner.plan(pl_module, example, step.aim)
            except ValueError as error:
                decision = error
            finally:
                pruner.budget = budget
    decided: Report | ValueError = trainer.strategy.broadcast(decision)  # type: ignore[assignment]
    return decided


@contextmanager
def _statistics_of_all_ranks(trainer: pl.Trainer, pruner: Pruner) -> Iterator[None]:
    """Let the pruner see what all ranks have gathered; afterwards each has its own again, to go on with."""
    statistics = pruner.statistics
    if statistics is None:
        yield
        return
    own, statistics.totals = statistics.totals, over_ranks(trainer, statistics.totals, statistics.over_ranks)
    try:
        yield
    finally:
        statistics.totals = own


def unseen_anywhere(trainer: pl.Trainer, pruner: Pruner) -> list[str] | None:
    """What is observed and has brought nothing on any rank; None while a rank has not observed a step."""
    own = None if pruner.statistics is None else (pruner.statistics.steps, pruner.statistics.unseen())
    found = [rank for rank in gathered(trainer, own) if rank is not None]
    if any(steps == 0 for steps, _ in found):
        return None
    return [name for name in found[0][1] if all(name in unseen for _, unseen in found)] if found else []
