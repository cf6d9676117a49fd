"""How many blocks a budget wants gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_prune.budgets.budget import Budget, BudgetError
from lightning_prune.budgets.cost import MACs, Params
from lightning_prune.budgets.count import Count
from lightning_prune.budgets.shares import Ratio, Sparsity
from lightning_prune.pruners.removable_blocks import Removable


@dataclass(frozen=True)
class Origin:
    """The dense network, which every share refers to.

    Attributes:
        params: Its parameters.
        macs: Its multiply-accumulates for one example.
        blocks: Names of the blocks that could go: a network that has lost some may look as if it had others.
    """

    params: int
    macs: int
    blocks: tuple[str, ...]


def how_many(
    budget: Budget, fraction: float, origin: Origin, removable: Removable, ranked: Sequence[str], removed: int
) -> int:
    """How many more blocks go.

    Args:
        budget: Until what; one of ``Count``, ``Ratio``, ``Sparsity``, ``Params`` and ``MACs``.
        fraction: How far the schedule has gone.
        origin: The dense network.
        removable: What the network can do without as it is now.
        ranked: Those that can go, the first of them first.
        removed: How many have gone.

    Raises:
        BudgetError: If that takes more blocks than there are.
    """
    if isinstance(budget, (Count, Ratio)):
        wanted = (
            budget.count
            if isinstance(budget, Count)
            else max(0, round(budget.share * fraction * len(origin.blocks)) - removed)
        )
        if wanted > len(ranked):
            raise BudgetError(f"{budget}: {wanted} more blocks would have to go, but only {len(ranked)} can")
        return wanted
    assert isinstance(budget, (Sparsity, Params, MACs))
    keep = 1 - budget.sparsity if isinstance(budget, Sparsity) else budget.keep
    unit = "macs" if isinstance(budget, MACs) else "params"
    dense, cost = getattr(origin, unit), getattr(removable.whole, unit)
    for count, name in enumerate([*ranked, ""]):
        if cost <= dense * (1 - (1 - keep) * fraction) * (1 + 1e-9):
            return count
        cost -= getattr(removable.fits[name], unit) if name else 0
    raise BudgetError(
        f"{budget} cannot be met: without all {len(ranked)} blocks that can go, {cost / dense:.4f} of the "
        f"{'MACs' if unit == 'macs' else 'parameters'} remain. Widen the scope or ask for less."
    )
