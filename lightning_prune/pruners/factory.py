"""Factory: the pruner for a granularity."""

from __future__ import annotations

from lightning_prune.budgets.budget import Budget
from lightning_prune.budgets.shares import Sparsity
from lightning_prune.criteria.criterion import Criterion
from lightning_prune.granularity import NM, Blocks, Channels, Granularity, Weights
from lightning_prune.pruners.block_pruner import BlockPruner
from lightning_prune.pruners.channel_pruner import ChannelPruner
from lightning_prune.pruners.nm_pruner import NMPruner
from lightning_prune.pruners.pruner import Pruner
from lightning_prune.pruners.weight_pruner import WeightPruner
from lightning_prune.scope import Scope


def budget_for(granularity: object, budget: Budget | None) -> Budget | None:
    """The given budget, or the sparsity of ``NM``, which takes no budget.

    Raises:
        ValueError: If a budget is given with ``NM``.
    """
    if not isinstance(granularity, NM):
        return budget
    if budget is not None:
        raise ValueError(f"budget={budget} cannot be used: {granularity} determines the sparsity; omit the budget")
    return Sparsity(1 - granularity.n / granularity.m)


def make_pruner(granularity: Granularity, criterion: Criterion, budget: Budget, scope: Scope) -> Pruner:
    """The pruner for a granularity.

    Raises:
        ValueError: If the criterion or the budget does not support the granularity.
    """
    if isinstance(granularity, Channels):
        return ChannelPruner(granularity, criterion, budget, scope)
    if isinstance(granularity, Weights):
        return WeightPruner(criterion, budget, scope, granularity.block)
    if isinstance(granularity, NM):
        return NMPruner(granularity, criterion, budget, scope)
    if isinstance(granularity, Blocks):
        return BlockPruner(criterion, budget, scope)
    raise ValueError(f"granularity={granularity!r} is not known; use Channels(), Weights(), NM() or Blocks()")
