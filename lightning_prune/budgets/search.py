"""The search for the fewest removals that meet a target, and what cannot be met."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from lightning_prune.budgets.budget import Budget, BudgetError
from lightning_prune.budgets.spaces.block_space import BlockSpace
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace

_STEPS = 4096  # resolution of a share in a search
_TRIES = 6  # real measurements of one event at most, once one of them is within the target

_Choice = TypeVar("_Choice")


def shrink(
    budget: Budget, space: ChannelSpace, cost: Callable[[Mapping[str, int]], float], target: float, unit: str
) -> Mapping[str, int]:
    """The fewest removals, globally by rank or evenly by share, after which ``cost`` is at most ``target``."""
    least = cost(space.floor)
    target = target * (1 + 1e-9)
    if least > target:
        dense = space.dense.params if unit == "parameters" else space.dense.macs
        lower = f", lower {' and '.join(space.limits)}" if space.limits else ""
        raise BudgetError(
            f"{budget} cannot be met: with the fewest channels left everywhere, {least / dense:.4f} of the "
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


def shrink_blocks(budget: Budget, space: BlockSpace, cost: Callable[[int], float], target: float, unit: str) -> int:
    """The fewest blocks, first of ``space`` first, without which ``cost`` is at most ``target``."""
    target = target * (1 + 1e-9)
    for count in range(len(space) + 1):
        if cost(count) <= target:
            return count
    dense = space.dense.params if unit == "parameters" else space.dense.macs
    raise BudgetError(
        f"{budget} cannot be met: without all {len(space)} blocks that can go, {cost(len(space)) / dense:.4f} of the "
        f"{unit} remain. Widen the scope or ask for less."
    )


def check_available(budget: Budget, space: BlockSpace, count: int) -> int:
    """``count``, if ``space`` has as many blocks.

    Raises:
        BudgetError: If it has fewer.
    """
    if count > len(space):
        raise BudgetError(f"{budget}: {count} more blocks would have to go, but only {len(space)} can")
    return count


def largest_within(
    choose: Callable[[float], _Choice], measure: Callable[[_Choice], float], target: float, tolerance: float
) -> _Choice:
    """The choice that is measured to cost the most within ``target``.

    Args:
        choose: What to take for a cost that is foreseen.
        measure: What it really costs.
        target: What it may cost.
        tolerance: The share that it may cost less.

    Raises:
        BudgetError: If ``choose`` raises it before anything is within the target.
    """
    aim, best, most = target, None, -1.0
    tried: list[_Choice] = []
    while best is None or len(tried) < _TRIES:
        try:
            choice = choose(aim)
        except BudgetError:
            if best is None:
                raise
            break
        if choice in tried:  # there is nothing between two that were tried
            if best is not None:
                break
            aim *= 1 - tolerance
            continue
        tried.append(choice)
        cost = measure(choice)
        if most < cost <= target:
            best, most = choice, cost
        if target * (1 - tolerance) <= cost <= target:
            break
        aim *= target / cost * (1 if cost <= target else 1 - tolerance / 4)
    assert best is not None
    return best


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
