"""Count: a number of units, weights or blocks removed in every event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lightning_prune.budgets.budget import Budget, BudgetError, check_moves, some
from lightning_prune.budgets.search import check_available
from lightning_prune.budgets.spaces.block_space import BlockSpace
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace
from lightning_prune.network.argument_checks import check_flag, check_integer


@dataclass(frozen=True)
class Count(Budget):
    """Number of units (filters), weights or blocks that are removed in every event.

    An example are the 'lowest-ranked filters' removed in each iteration by Molchanov et al. 2016, 'Pruning
    convolutional neural networks for resource efficient inference'. Groups that are pruned only together lose whole
    steps, as many as do not exceed the count. ``Channels(round_to=...)`` rounds all other groups to the nearest width,
    which may remove a few units more.

    Args:
        count: Number removed in each event, at least 1.
        per_layer: Whether this number is removed from every group or parameter, instead of from all together.

    Raises:
        ValueError: If an argument is out of range.
    """

    count: int
    per_layer: bool = False
    masks = True
    blocks = True

    def __post_init__(self) -> None:
        check_flag(self, "per_layer", self.per_layer)
        check_integer(self, "count", self.count, minimum=1)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """All units but the lowest-ranked."""
        for candidate in space.candidates:
            units = list(candidate.quantum.values())
            at_once = candidate.jump * (max(units) if self.per_layer else sum(units))
            if candidate.bundled and at_once > self.count:
                raise BudgetError(
                    f"{self}: {some(candidate.quantum)} are pruned only together, {at_once} units at once; use "
                    f"count={at_once} or more, or exclude them in the scope"
                )
        if self.per_layer:
            return space.keep_each(self.count)
        if self.count > space.removable:
            raise BudgetError(f"{self}: only {space.removable} more units can be removed, with one kept in every group")
        return space.keep_after(self.count, at_most=True)

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """Check that all events together find enough units, and that rounding does not keep all of them."""
        check_moves(self, space, self.keep_units(space, 1.0))
        if not self.per_layer and events is not None:
            self._check_total(events, space.removable, "units")

    def check_weights(self, space: WeightSpace, events: int | None) -> None:
        """Check that all events together find enough weights."""
        self.mask_weights(space, 1.0)
        if not self.per_layer and events is not None:
            self._check_total(events, space.maskable - sum(space.masked.values()), "weights")

    def _check_total(self, events: int, available: int, unit: str) -> None:
        if self.count * events > available:
            part = "group" if unit == "units" else "parameter"
            cure = f"count={available // events}" if available >= events else f"{available} events of count=1"
            raise BudgetError(
                f"{self} in {events} events requires {self.count * events} {unit}, but only {available} can be "
                f"removed, with one kept in every {part}; use at most {cure}"
            )

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """The weights masked before, and the count."""
        if self.per_layer:
            return {name: min(space.masked[name] + self.count, size - 1) for name, size in space.sizes.items()}
        total = sum(space.masked.values()) + self.count
        if total > space.maskable:
            raise BudgetError(f"{self}: only {space.maskable - total + self.count} more weights can be masked")
        return total

    def check_block_size(self, weights: int) -> None:
        """Check that an event masks at least one block."""
        if self.count < weights:
            raise BudgetError(f"{self} masks nothing: a block has up to {weights} weights; use a larger count")

    def remove_blocks(self, space: BlockSpace, fraction: float) -> int:
        """The count, independent of the fraction."""
        return check_available(self, space, self.count)

    def check_blocks(self, space: BlockSpace, events: int | None) -> None:
        """Check that all events together find enough blocks."""
        if events is not None and self.count * events > len(space):
            raise BudgetError(
                f"{self} in {events} events requires {self.count * events} blocks, but only {len(space)} can be removed"
            )
        super().check_blocks(space, events)

    def scaled(self, share: float) -> Count:
        """A share of the count, rounded, and at least 1."""
        return replace(self, count=max(1, round(self.count * share)))
