"""Everything that scores too low goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from lightning_prune.budgets.budget import Budget, check_moves
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace


@dataclass(frozen=True)
class Threshold(Budget):
    """Whatever scores below a value goes; how much that is, the training decides.

    With ``BatchNormScale`` the threshold on γ of Liu et al. 2017, 'Learning efficient convolutional networks through
    network slimming', section 3; with ``Movement`` the soft variant of Sanh et al. 2020, 'Movement pruning', section
    4. The schedule says when, not how far: nothing is interpolated, every event from its start on applies the whole
    threshold. An event that finds nothing below it removes nothing.

    The best unit of every group and the best weight of every parameter always survive. Groups that shrink only together
    lose the steps whose mean score lies below; ``Channels(round_to=...)`` rounds to the nearest width, which may be a
    few units more or less.

    Args:
        value: Scores below it go, in the units of the criterion; any finite number.
    """

    value: float
    per_layer = True
    masks = True
    needs_scores = True

    def __post_init__(self) -> None:
        value = self.value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            raise ValueError(f"Threshold value={value!r} must be a finite number, in the units of the criterion")

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The units that score at least as high."""
        return space.keep_from(self.value) if fraction > 0 else space.now

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """Scores are not known yet; but something must be able to go."""
        if space.now == space.dense_units:
            check_moves(self, space, space.floor)

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """The weights that score lower, and those masked before."""
        return space.masked_below(self.value) if fraction > 0 else space.masked

    def check_weights(self, space: WeightSpace, events: int | None) -> None:
        """Scores are not known yet."""
