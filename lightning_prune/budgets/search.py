"""Searches for the fewest removals that meet a target, and errors for targets that cannot be met."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from lightning_prune.budgets.budget import Budget, BudgetError
from lightning_prune.budgets.spaces.block_space import BlockSpace
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace

_STEPS = 4096  # resolution of a share
_TRIES = 6  # maximum number of measurements in an event, once one of them is within the target

_Choice = TypeVar("_Choice")


def shrink(
    budget: Budget, space: ChannelSpace, cost: Callable[[Mapping[str, int]], float], target: float, unit: str
) -> Mapping[str, int]:
    """Units kept after the fewest removals that bring ``cost`` to at most ``target``.

    Args:
        budget: The budget, for its ``per_layer`` and the message.
        space: The channels that can be removed.
        cost: Units kept by group -> cost of the network.
        target: The allowed cost.
        unit: ``"parameters"`` or ``"MACs"``.

    Raises:
        BudgetError: If the target cannot be met.
    """
    least = cost(space.floor)
    target = target * (1 + 1e-9)
    if least > target:
        dense = space.dense.params if unit == "parameters" else space.dense.macs
        lower = f", lower {' and '.join(space.limits)}" if space.limits else ""
        raise BudgetError(
            f"{budget} cannot be met: with the fewest channels in every group, {least / dense:.4f} of the "
            f"{unit} remain. Widen the scope{lower} or increase the target."
        )

    return fewest(budget.per_layer, space, cost, target)


def fewest(
    per_layer: bool, space: ChannelSpace, cost: Callable[[Mapping[str, int]], float], target: float
) -> Mapping[str, int]:
    """Units kept after the fewest removals that bring ``cost`` to at most ``target``, or after all removals.

    Units are removed evenly with ``per_layer``, otherwise by their rank.
    """

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
    """The fewest blocks, in the order of ``space``, without which ``cost`` is at most ``target``.

    Args:
        budget: The budget, for the message.
        space: The blocks that can be removed.
        cost: Number of removed blocks -> cost of the network.
        target: The allowed cost.
        unit: ``"parameters"`` or ``"MACs"``.

    Raises:
        BudgetError: If the target cannot be met.
    """
    target = target * (1 + 1e-9)
    for count in range(len(space) + 1):
        if cost(count) <= target:
            return count
    dense = space.dense.params if unit == "parameters" else space.dense.macs
    raise BudgetError(
        f"{budget} cannot be met: without all {len(space)} blocks that can be removed, {cost(len(space)) / dense:.4f} "
        f"of the {unit} remain. Widen the scope or increase the target."
    )


def check_available(budget: Budget, space: BlockSpace, count: int) -> int:
    """``count``, if ``space`` has as many blocks.

    Raises:
        BudgetError: If it has fewer.
    """
    if count > len(space):
        raise BudgetError(f"{budget}: {count} more blocks have to be removed, but only {len(space)} can be")
    return count


def largest_within(
    choose: Callable[[float], _Choice], measure: Callable[[_Choice], float], target: float, tolerance: float
) -> _Choice:
    """The choice with the highest measured cost within ``target``.

    Args:
        choose: Estimated cost -> choice.
        measure: Choice -> measured cost.
        target: The allowed cost.
        tolerance: Relative distance below the target at which the search stops.

    Raises:
        BudgetError: If ``choose`` raises it before any choice is within the target.
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
        if choice in tried:  # there is no choice between two that were tried
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
    """Number of masked weights for a share of every parameter, or of all together.

    Raises:
        BudgetError: If no weight of a parameter would be kept.
    """
    sizes = np.array(list(space.sizes.values()))
    wanted = round(share * int(sizes.sum()))
    if not budget.per_layer:
        if wanted > space.maskable:
            raise BudgetError(
                f"{budget} keeps no weight in a parameter; use at most {space.maskable / sizes.sum():.6f}"
            )
        return wanted
    if share * sizes.max() > sizes.max() - 1:
        raise BudgetError(f"{budget} keeps no weight in a parameter; use at most {1 - 1 / sizes.max():.6f}")
    return {name: min(round(share * size), size - 1) for name, size in space.sizes.items()}
