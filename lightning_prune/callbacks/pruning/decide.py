"""Plan of the next event: decided once, for all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
from torch import Tensor

from lightning_prune.budgets.budget import Budget
from lightning_prune.callbacks.pruning.block_ablation import ablation_losses
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
    """Plan the next event from the statistics of all ranks, on rank 0; on all ranks if parameters are sharded.

    Returns:
        The report with the plan, equal on all ranks; or the error that rules the event out: permanently
        (``BudgetError``), or at present (any other ``ValueError``).
    """
    decision: Report | ValueError | None = None
    budget = step.scaled(pruner.budget)
    statistics = _statistics(trainer, pl_module, pruner, example, step.aim, budget)
    if is_sharded(pl_module) or trainer.is_global_zero:
        try:
            decision = pruner.plan(pl_module, example, step.aim, budget=budget, statistics=statistics)
        except ValueError as error:
            decision = error
    decided: Report | ValueError = trainer.strategy.broadcast(decision)  # type: ignore[assignment]
    return decided


def _statistics(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    pruner: Pruner,
    example: Example | None,
    fraction: float,
    budget: Budget,
) -> Mapping[str, Tensor]:
    """Statistics of all ranks: those gathered during training, or the validation losses without each block."""
    if isinstance(pruner, BlockPruner) and pruner.criterion.compares_losses:
        return ablation_losses(trainer, pl_module, pruner, example, fraction, budget)
    own = pruner.statistics
    return {} if own is None else over_ranks(trainer, own.totals, own.over_ranks)


def unseen_anywhere(trainer: pl.Trainer, pruner: Pruner) -> list[str] | None:
    """Observed layers without a gradient on any rank; None until every rank has observed a step."""
    own = None if pruner.statistics is None else (pruner.statistics.steps, pruner.statistics.unseen())
    ranks = [rank for rank in gathered(trainer, own) if rank is not None]
    if any(steps == 0 for steps, _ in ranks):
        return None
    return [name for name in ranks[0][1] if all(name in unseen for _, unseen in ranks)] if ranks else []
