"""Ratio and Sparsity: shares of channels, weights, parameters or blocks that are removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_prune.budgets.budget import Budget, BudgetError, check_moves, some
from lightning_prune.budgets.search import check_available, masked, shrink, shrink_blocks
from lightning_prune.budgets.spaces.block_space import BlockSpace
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace
from lightning_prune.network.argument_checks import check_flag, check_share


@dataclass(frozen=True)
class Ratio(Budget):
    """Share of the channels, weights or blocks that is removed, of the dense network.

    Args:
        share: Share removed, in [0, 1].
        per_layer: True removes the share of every group of channels or of every parameter, False the share of all
            together, lowest scores first. Blocks are always ranked together.

    Raises:
        ValueError: If an argument is out of range.
    """

    share: float
    per_layer: bool = True
    masks = True
    blocks = True

    def __post_init__(self) -> None:
        check_flag(self, "per_layer", self.per_layer)
        check_share(self, "share", self.share)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """All units but the share of every group, or but the lowest-ranked share of all."""
        total = sum(space.dense_units.values()) + sum(space.exhausted.values())
        exhausted = sum(space.last[name] for name in space.exhausted)
        narrow = space.min_width > 1 and not self.per_layer  # with per_layer, min_width limits each group
        least = exhausted + sum(space.floor[n] if narrow else space.last[n] for n in space.now)
        if self.share * total > total - least:
            few = f"fewer channels than min_width={space.min_width}" if narrow else "no channel"
            most = 1 - least / total
            raise BudgetError(f"{self} keeps {few} in a group; use at most share={most:.4f}")
        if self.per_layer:
            return space.keep_share(self.share * fraction)
        removed = total - sum(space.now.values()) - exhausted
        return space.keep_after(round(self.share * fraction * total) - removed)

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """Also refuse a share that rounds to no unit, or that is less than one step of a bundle."""
        kept = self.keep_units(space, 1.0)
        if self.share > 0 and space.now == space.dense_units:
            if not self.per_layer:
                self._check_steps(space)
            check_moves(self, space, kept)

    def _check_steps(self, space: ChannelSpace) -> None:
        total = sum(space.dense_units.values())
        for candidate in space.candidates:
            units = sum(candidate.quantum.values())
            if candidate.bundled and candidate.jump and units > round(self.share * total):
                raise BudgetError(
                    f"{self} is {round(self.share * total)} units, but {some(candidate.quantum)} are pruned only "
                    f"together, {units} units at once; use share={units / total:.4f} or more, or exclude them in the "
                    "scope"
                )

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """The share of every parameter, or of all together."""
        return masked(self, space, self.share * fraction)

    def remove_blocks(self, space: BlockSpace, fraction: float) -> int:
        """The share of the blocks of the dense network, rounded, minus those removed before."""
        wanted = round(self.share * fraction * len(space.dense.units)) - space.removed
        return check_available(self, space, max(0, wanted))

    def check_blocks(self, space: BlockSpace, events: int | None) -> None:
        """Also refuse a share that rounds to no block."""
        blocks = len(space.dense.units)
        if space.removed == 0 and self.share > 0 and not round(self.share * blocks):
            raise BudgetError(
                f"{self} removes nothing here: its share of {blocks} blocks rounds to none. Use "
                f"share={1 / blocks:.4f} or more, or Count(1)."
            )
        super().check_blocks(space, events)


@dataclass(frozen=True)
class Sparsity(Budget):
    """Sparsity: the fraction of the parameters of the dense network that is removed.

    With ``Weights()`` it counts the weights in the scope, with ``Channels()`` and ``Blocks()`` all parameters of the
    network.

    Args:
        sparsity: Fraction removed, in [0, 1].
        per_layer: Whether every layer loses the same share, instead of the lowest-ranked weights or units of all
            layers.

    Raises:
        ValueError: If an argument is out of range.
    """

    sparsity: float
    per_layer: bool = False
    masks = True
    blocks = True

    def __post_init__(self) -> None:
        check_flag(self, "per_layer", self.per_layer)
        check_share(self, "sparsity", self.sparsity)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The fewest removals after which the number of parameters is at most the target."""
        return shrink(self, space, space.params, space.dense.params * (1 - self.sparsity * fraction), "parameters")

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """The share of every parameter, or of all together."""
        return masked(self, space, self.sparsity * fraction)

    def remove_blocks(self, space: BlockSpace, fraction: float) -> int:
        """The fewest blocks without which the number of parameters is at most the target."""
        target = space.dense.params * (1 - self.sparsity * fraction)
        return shrink_blocks(self, space, space.params_after, target, "parameters")
