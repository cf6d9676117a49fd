"""A share of everything goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_prune.budgets.budget import Budget, BudgetError, check_flag, check_moves, check_share, some
from lightning_prune.budgets.search import check_available, masked, shrink, shrink_blocks
from lightning_prune.budgets.spaces.block_space import BlockSpace
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace


@dataclass(frozen=True)
class Ratio(Budget):
    """A share of the channels (of every group, or of all), or of the weights, is removed.

    Args:
        share: Share removed of the original, in [0, 1].
        per_layer: True: of every group or parameter. False: of all together, lowest scores first.
    """

    share: float
    per_layer: bool = True
    masks = True
    blocks = True

    def __post_init__(self) -> None:
        check_flag(self)
        check_share(self, "share", self.share)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The share of every group, or the lowest-ranked share of all."""
        total = sum(space.dense_units.values()) + sum(space.exhausted.values())
        exhausted = sum(space.last[name] for name in space.exhausted)
        narrow = space.min_width > 1 and not self.per_layer  # a group by itself gives what min_width lets it give
        least = exhausted + sum(space.floor[n] if narrow else space.last[n] for n in space.now)
        if self.share * total > total - least:
            few = f"fewer channels than min_width={space.min_width}" if narrow else "no channel"
            most = 1 - least / total
            raise BudgetError(f"{self} leaves {few} somewhere; at most share={most:.4f} can go here")
        if self.per_layer:
            return space.keep_share(self.share * fraction)
        gone = total - sum(space.now.values()) - exhausted
        return space.keep_after(round(self.share * fraction * total) - gone)

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """Also refuse a ratio that rounding turns into nothing, or that the ranking may stop short of."""
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
                    f"{self} is {round(self.share * total)} units, but {some(candidate.quantum)} shrink only "
                    f"together, by {units} units at once; ask for share={units / total:.4f} or more, or exclude them "
                    "by the scope"
                )

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """The share of every parameter, or of all."""
        return masked(self, space, self.share * fraction)

    def remove_blocks(self, space: BlockSpace, fraction: float) -> int:
        """The share of the blocks of the dense network, rounded, less those removed before."""
        wanted = round(self.share * fraction * len(space.dense.units)) - space.removed
        return check_available(self, space, max(0, wanted))

    def check_blocks(self, space: BlockSpace, events: int | None) -> None:
        """Also refuse a share that rounds to no block."""
        blocks = len(space.dense.units)
        if space.removed == 0 and self.share > 0 and not round(self.share * blocks):
            raise BudgetError(
                f"{self} removes nothing here: of {blocks} blocks that rounds to none. Ask for "
                f"share={1 / blocks:.4f} or more, or use Count(1)."
            )
        super().check_blocks(space, events)


@dataclass(frozen=True)
class Sparsity(Budget):
    """The network reaches a sparsity: the fraction of the original parameters that is gone.

    With ``Weights()``, of the weights in the scope; with ``Channels()``, of all parameters of the network.

    Args:
        sparsity: Fraction removed, in [0, 1].
        per_layer: Whether every layer gives the same share.
    """

    sparsity: float
    per_layer: bool = False
    masks = True
    blocks = True

    def __post_init__(self) -> None:
        check_flag(self)
        check_share(self, "sparsity", self.sparsity)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The fewest removals that bring the parameters down to the target."""
        return shrink(self, space, space.params, space.dense.params * (1 - self.sparsity * fraction), "parameters")

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """The share of every parameter, or of all."""
        return masked(self, space, self.sparsity * fraction)

    def remove_blocks(self, space: BlockSpace, fraction: float) -> int:
        """The fewest blocks without which the parameters are at most the target."""
        target = space.dense.params * (1 - self.sparsity * fraction)
        return shrink_blocks(self, space, space.params_after, target, "parameters")
