"""All: several budgets at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from lightning_prune.budgets.budget import Budget
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.latency_table import Conditions
from lightning_prune.budgets.spaces.weight_space import WeightSpace


@dataclass(frozen=True)
class All(Budget):
    """Several budgets at once: for each group or parameter the most restrictive one applies, which keeps the least.

    Since costs do not increase when less is kept, each of the budgets is met. Where they rank or distribute
    differently, more may be removed than the minimum that meets all of them. If one of them cannot be met, an event
    fails as with this budget alone.

    Args:
        budgets: The budgets; at least one, and all for the same granularity.

    Raises:
        ValueError: If ``budgets`` is not a sequence of budgets, is empty, or has no granularity in common.

    Example:
        >>> from lightning_prune.budgets import MACs, Params
        >>> All([MACs(keep=0.5), Params(keep=0.3)]).units
        True
    """

    budgets: Sequence[Budget]
    needs_scores = True  # to combine a total with counts for each parameter

    def __post_init__(self) -> None:
        budgets = self.budgets
        if not isinstance(budgets, Sequence) or not budgets or not all(isinstance(part, Budget) for part in budgets):
            raise ValueError(f"All budgets={budgets!r} must be a list of budgets: [MACs(keep=0.5), Params(keep=0.3)]")
        object.__setattr__(self, "budgets", tuple(budgets))
        if not self.units and not self.masks:
            only = {part.units: part for part in budgets}
            raise ValueError(f"All cannot combine {only[True]}, for Channels(), with {only[False]}, for Weights()")

    @property
    def per_layer(self) -> bool:  # type: ignore[override]
        """Whether none of them ranks all groups or parameters together."""
        return all(part.per_layer for part in self.budgets)

    @property
    def units(self) -> bool:  # type: ignore[override]
        """Whether all of them support ``Channels()``."""
        return all(part.units for part in self.budgets)

    @property
    def masks(self) -> bool:  # type: ignore[override]
        """Whether all of them support ``Weights()``."""
        return all(part.masks for part in self.budgets)

    @property
    def conditions(self) -> tuple[Conditions, ...]:  # type: ignore[override]
        """The conditions of all of them."""
        return tuple(dict.fromkeys(conditions for part in self.budgets for conditions in part.conditions))

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The minimum over the budgets, for each group."""
        kept = [part.keep_units(space, fraction) for part in self.budgets]
        return {name: min(widths[name] for widths in kept) for name in space.now}

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """Check each of them."""
        for part in self.budgets:
            part.check_units(space, events)

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """The maximum over the budgets, in total or for each parameter."""
        counts = [part.mask_weights(space, fraction) for part in self.budgets]
        together = [count for count in counts if isinstance(count, int)]
        each = [count for count in counts if not isinstance(count, int)]
        if not each:
            return max(together)
        if together:
            each.append(_by_parameter(space, max(together)))
        return {name: max(count[name] for count in each) for name in space.sizes}

    def check_weights(self, space: WeightSpace, events: int | None) -> None:
        """Check each of them."""
        for part in self.budgets:
            part.check_weights(space, events)

    def scaled(self, share: float) -> All:
        """Each of them is scaled."""
        return replace(self, budgets=tuple(part.scaled(share) for part in self.budgets))


def _by_parameter(space: WeightSpace, masked: int) -> dict[str, int]:
    """Parameter name -> masked weights, if ``masked`` weights are masked in total."""
    masks = space.lowest(masked)
    return {name: mask.numel() - int(torch.count_nonzero(mask)) for name, mask in masks.items()}
