"""Several budgets at once."""

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
    """Several budgets are met, where the stricter decides: for each group or parameter, the one that keeps least.

    Costs never grow where less is kept, so each budget by itself is met, too; together they may remove more than the
    least that meets them all, where they rank or share differently. Where one of them cannot be met, nothing is.

    Args:
        budgets: The budgets; at least one, and all for the same granularity.

    Example:
        >>> from lightning_prune.budgets import MACs, Params
        >>> All([MACs(keep=0.5), Params(keep=0.3)]).units
        True
    """

    budgets: Sequence[Budget]
    needs_scores = True  # where one of them counts the weights of all and another those of each parameter

    def __post_init__(self) -> None:
        budgets = self.budgets
        if not isinstance(budgets, Sequence) or not budgets or not all(isinstance(part, Budget) for part in budgets):
            raise ValueError(f"All budgets={budgets!r} must be a list of budgets: [MACs(keep=0.5), Params(keep=0.3)]")
        object.__setattr__(self, "budgets", tuple(budgets))
        if not self.units and not self.masks:
            only = {part.units: part for part in budgets}
            raise ValueError(f"All cannot join {only[True]}, for Channels(), with {only[False]}, for Weights()")

    @property
    def per_layer(self) -> bool:  # type: ignore[override]
        """Whether none of them ranks all together."""
        return all(part.per_layer for part in self.budgets)

    @property
    def units(self) -> bool:  # type: ignore[override]
        """Whether all of them count channels."""
        return all(part.units for part in self.budgets)

    @property
    def masks(self) -> bool:  # type: ignore[override]
        """Whether all of them count single weights."""
        return all(part.masks for part in self.budgets)

    @property
    def conditions(self) -> tuple[Conditions, ...]:  # type: ignore[override]
        """Those of all of them."""
        return tuple(dict.fromkeys(conditions for part in self.budgets for conditions in part.conditions))

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The fewest units that any of them keeps."""
        kept = [part.keep_units(space, fraction) for part in self.budgets]
        return {name: min(widths[name] for widths in kept) for name in space.now}

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """Each must be possible."""
        for part in self.budgets:
            part.check_units(space, events)

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """The most weights that any of them masks, of all or of each parameter."""
        counts = [part.mask_weights(space, fraction) for part in self.budgets]
        together = [count for count in counts if isinstance(count, int)]
        each = [count for count in counts if not isinstance(count, int)]
        if not each:
            return max(together)
        if together:
            each.append(_by_parameter(space, max(together)))
        return {name: max(count[name] for count in each) for name in space.sizes}

    def check_weights(self, space: WeightSpace, events: int | None) -> None:
        """Each must be possible."""
        for part in self.budgets:
            part.check_weights(space, events)

    def scaled(self, share: float) -> All:
        """Each is scaled."""
        return replace(self, budgets=tuple(part.scaled(share) for part in self.budgets))


def _by_parameter(space: WeightSpace, masked: int) -> dict[str, int]:
    """How many weights of each parameter are masked where so many of all are."""
    masks = space.lowest(masked)
    return {name: mask.numel() - int(torch.count_nonzero(mask)) for name, mask in masks.items()}
