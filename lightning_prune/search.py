"""The search for the fewest removals that meet a target, and what cannot be met."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from lightning_prune.spaces import ChannelSpace
from lightning_prune.weight_space import WeightSpace

if TYPE_CHECKING:
    from lightning_prune.budgets import Budget

_STEPS = 4096  # resolution of a share in a search


class BudgetError(ValueError):
    """A budget that this network cannot meet; the message says what it can."""


def shrink(
    budget: Budget, space: ChannelSpace, cost: Callable[[Mapping[str, int]], float], target: float, unit: str
) -> Mapping[str, int]:
    """The fewest removals, globally by rank or evenly by share, after which ``cost`` is at most ``target``."""
    least = cost(space.floor)
    target = target * (1 + 1e-9)
    if least > target:
        original = space.original_params if unit == "parameters" else space.original_macs
        lower = f", lower {' and '.join(space.limits)}" if space.limits else ""
        raise BudgetError(
            f"{budget} cannot be met: with the fewest channels left everywhere, {least / original:.4f} of the "
            f"{unit} remain. Widen the scope{lower} or ask for less."
        )

    return fewest(budget.per_layer, space, cost, target)


def fewest(
    per_layer: bool, space: ChannelSpace, cost: Callable[[Mapping[str, int]], float], target: float
) -> Mapping[str, int]:
    """The widths after the fewest removals that bring ``cost`` to ``target``, or all that can go."""

    def widths(n: int) -> Mapping[str, int]:
        return space.keep_share(n / _STEPS) if per_layer else space.keep_after_steps(n)

    low, high = 0, _STEPS if per_layer else space.steps
    while low < high:
        middle = (low + high) // 2
        if cost(widths(middle)) <= target:
            high = middle
        else:
            low = middle + 1
    return widths(low)


def masked(budget: Budget, space: WeightSpace, share: float) -> Mapping[str, int] | int:
    """How many weights are masked for a share of every parameter, or of all, with one left in each."""
    sizes = np.array(list(space.sizes.values()))
    wanted = round(share * int(sizes.sum()))
    if not budget.per_layer:
        if wanted > space.maskable:
            raise BudgetError(f"{budget} leaves no weight somewhere; at most {space.maskable / sizes.sum():.6f} can go")
        return wanted
    if share * sizes.max() > sizes.max() - 1:
        raise BudgetError(f"{budget} leaves no weight in a parameter; at most {1 - 1 / sizes.max():.6f} can go")
    return {name: min(round(share * size), size - 1) for name, size in space.sizes.items()}
