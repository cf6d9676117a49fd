"""Params and MACs: targets for the cost of the network, as a share of the dense network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_prune.budgets.budget import Budget
from lightning_prune.budgets.search import shrink, shrink_blocks
from lightning_prune.budgets.spaces.block_space import BlockSpace
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.network.argument_checks import check_flag, check_share


@dataclass(frozen=True)
class Params(Budget):
    """Number of parameters, as a share of the dense network.

    Channels, or blocks, with the lowest scores are removed until the target is met.

    Args:
        keep: Share of the parameters kept, in [0, 1].
        per_layer: Whether every group loses the same share of its units, instead of the lowest-ranked units of all
            groups.

    Raises:
        ValueError: If an argument is out of range.
    """

    keep: float
    per_layer: bool = False
    blocks = True

    def __post_init__(self) -> None:
        check_flag(self, "per_layer", self.per_layer)
        check_share(self, "keep", self.keep)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The fewest removals after which the number of parameters is at most the target."""
        target = space.dense.params * (1 - (1 - self.keep) * fraction)
        return shrink(self, space, space.params, target, "parameters")

    def remove_blocks(self, space: BlockSpace, fraction: float) -> int:
        """The fewest blocks without which the number of parameters is at most the target."""
        target = space.dense.params * (1 - (1 - self.keep) * fraction)
        return shrink_blocks(self, space, space.params_after, target, "parameters")


@dataclass(frozen=True)
class MACs(Budget):
    """Multiply-accumulates of a forward pass, as a share of the dense network.

    Channels, or blocks, with the lowest scores are removed until the target is met.

    Args:
        keep: Share of the MACs kept, in [0, 1].
        per_layer: Whether every group loses the same share of its units, instead of the lowest-ranked units of all
            groups.

    Raises:
        ValueError: If an argument is out of range.
    """

    keep: float
    per_layer: bool = False
    blocks = True

    def __post_init__(self) -> None:
        check_flag(self, "per_layer", self.per_layer)
        check_share(self, "keep", self.keep)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The fewest removals after which the MACs are at most the target."""
        return shrink(self, space, space.macs, space.dense.macs * (1 - (1 - self.keep) * fraction), "MACs")

    def remove_blocks(self, space: BlockSpace, fraction: float) -> int:
        """The fewest blocks without which the MACs are at most the target."""
        target = space.dense.macs * (1 - (1 - self.keep) * fraction)
        return shrink_blocks(self, space, space.macs_after, target, "MACs")
