"""The same number goes in every event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lightning_prune.budgets.budget import Budget, BudgetError, check_flag, check_moves, some
from lightning_prune.budgets.search import check_available
from lightning_prune.budgets.spaces.block_space import BlockSpace
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace


@dataclass(frozen=True)
class Count(Budget):
    """So many units (filters), or weights, are removed in every event.

    'The 200 lowest-ranked filters a round', as in Molchanov et al. 2016. Groups that shrink only together lose the
    units of whole steps, as many as do not exceed the count; ``Channels(round_to=...)`` rounds all other groups to
    the nearest width, which may be a few units more.

    Args:
        count: Number removed in each event, at least 1.
        per_layer: Whether that many go from every group or parameter, instead of from all together.
    """

    count: int
    per_layer: bool = False
    masks = True
    blocks = True

    def __post_init__(self) -> None:
        check_flag(self)
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"Count count={self.count!r} must be a whole number of at least 1")

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The lowest-ranked units go."""
        for candidate in space.candidates:
            units = list(candidate.quantum.values())
            at_once = candidate.jump * (max(units) if self.per_layer else sum(units))
            if candidate.bundled and at_once > self.count:
                raise BudgetError(
                    f"{self}: {some(candidate.quantum)} shrink only together, by {at_once} units at once; use "
                    f"count={at_once} or more, or exclude them by the scope"
                )
        if self.per_layer:
            return space.keep_each(self.count)
        if self.count > space.removable:
            raise BudgetError(f"{self}: only {space.removable} more units can go with one left everywhere.")
        return space.keep_after(self.count, at_most=True)

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """All events together must find enough units, and rounding must let some go."""
        check_moves(self, space, self.keep_units(space, 1.0))
        if not self.per_layer and events is not None:
            self._check_total(events, space.removable, "units")

    def check_weights(self, space: WeightSpace, events: int | None) -> None:
        """All events together must find enough weights."""
        self.mask_weights(space, 1.0)
        if not self.per_layer and events is not None:
            self._check_total(events, space.maskable - sum(space.masked.values()), "weights")

    def _check_total(self, events: int, available: int, unit: str) -> None:
        if self.count * events > available:
            cure = f"count={available // events}" if available >= events else f"{available} events of count=1"
            raise BudgetError(
                f"{self} in {events} events wants {self.count * events} {unit}, but only {available} can go with one "
                f"left everywhere; at most {cure}"
            )

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """So many more than are masked already."""
        if self.per_layer:
            return {name: min(space.masked[name] + self.count, size - 1) for name, size in space.sizes.items()}
        total = sum(space.masked.values()) + self.count
        if total > space.maskable:
            raise BudgetError(f"{self}: only {space.maskable - total + self.count} more weights can be masked")
        return total

    def check_block_size(self, weights: int) -> None:
        """An event must mask at least one block."""
        if self.count < weights:
            raise BudgetError(f"{self} masks nothing: a block has up to {weights} weights. Use a larger count")

    def remove_blocks(self, space: BlockSpace, fraction: float) -> int:
        """The count, which does not depend on the fraction."""
        return check_available(self, space, self.count)

    def check_blocks(self, space: BlockSpace, events: int | None) -> None:
        """All events together must find enough blocks."""
        if events is not None and self.count * events > len(space):
            raise BudgetError(
                f"{self} in {events} events wants {self.count * events} blocks, but only {len(space)} can go"
            )
        super().check_blocks(space, events)

    def scaled(self, share: float) -> Count:
        """At least one goes."""
        return replace(self, count=max(1, round(self.count * share)))
