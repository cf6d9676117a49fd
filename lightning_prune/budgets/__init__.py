"""Budgets: target sizes. Shares are removed, ``keep`` is kept, both of the dense network; counts are per event."""

from lightning_prune.budgets.budget import Budget, BudgetError
from lightning_prune.budgets.combined import All
from lightning_prune.budgets.compressed_size import FileSize
from lightning_prune.budgets.cost import MACs, Params
from lightning_prune.budgets.count import Count
from lightning_prune.budgets.erk import ERK
from lightning_prune.budgets.latency import Latency
from lightning_prune.budgets.ratios import Ratios
from lightning_prune.budgets.shares import Ratio, Sparsity
from lightning_prune.budgets.threshold import Threshold

__all__ = [
    "ERK",
    "All",
    "Budget",
    "BudgetError",
    "Count",
    "FileSize",
    "Latency",
    "MACs",
    "Params",
    "Ratio",
    "Ratios",
    "Sparsity",
    "Threshold",
]
