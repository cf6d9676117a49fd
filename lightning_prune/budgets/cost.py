"""A cost of the network shrinks to a share of the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_prune.budgets.budget import Budget, check_flag, check_share
from lightning_prune.budgets.search import shrink, shrink_blocks
from lightning_prune.budgets.spaces.block_space import BlockSpace
from lightning_prune.budgets.spaces.channel_space import ChannelSpace


@dataclass(frozen=True)
class Params(Budget):
    """The parameters shrink to a share of the original.

    Args:
        keep: Share of the parameters kept, in [0, 1].
        per_layer: Whether every group gives the same share of its units.
    """

    keep: float
    per_layer: bool = False
    blocks = True

    def __post_init__(self) -> None:
        check_flag(self)
        check_share(self, "keep", self.keep)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The fewest removals that bring the parameters down to the target."""
        target = space.dense.params * (1 - (1 - self.keep) * fraction)
        return shrink(self, space, space.params, target, "parameters")

    def remove_blocks(self, space: BlockSpace, fraction: float) -> int:
        """The fewest blocks without which the parameters are at most the target."""
        target = space.dense.params * (1 - (1 - self.keep) * fraction)
        return shrink_blocks(self, space, space.params_after, target, "parameters")


@dataclass(frozen=True)
class MACs(Budget):
    """The multiply-accumulates of a forward pass shrink to a share of the original.

    Args:
        keep: Share of the MACs kept, in [0, 1].
        per_layer: Whether every group gives the same share of its units.
    """

    keep: float
    per_layer: bool = False
    blocks = True

    def __post_init__(self) -> None:
        check_flag(self)
        check_share(self, "keep", self.keep)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The fewest removals that bring the MACs down to the target."""
        return shrink(self, space, space.macs, space.dense.macs * (1 - (1 - self.keep) * fraction), "MACs")

    def remove_blocks(self, space: BlockSpace, fraction: float) -> int:
        """The fewest blocks without which the MACs are at most the target."""
        target = space.dense.macs * (1 - (1 - self.keep) * fraction)
        return shrink_blocks(self, space, space.macs_after, target, "MACs")
