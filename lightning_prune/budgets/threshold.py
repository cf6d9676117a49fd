"""Threshold: everything with a score below a value is removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_prune.budgets.budget import Budget, check_moves
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace
from lightning_prune.network.argument_checks import check_number


@dataclass(frozen=True)
class Threshold(Budget):
    """Units or weights with a score below a value are removed; the resulting size depends on the training.

    With ``BatchNormScale`` this is the threshold on γ of Liu et al. 2017, 'Learning efficient convolutional networks
    through network slimming', section 3; with ``Movement`` the soft variant of Sanh et al. 2020, 'Movement pruning',
    section 4. The schedule only determines the times of the events: the threshold is not interpolated, every event
    applies it in full. An event without scores below it removes nothing.

    The unit with the highest score of every group, and the weight with the highest score of every parameter, are always
    kept. Groups that are pruned only together lose the steps whose mean score is below the value.
    ``Channels(round_to=...)`` rounds to the nearest width, which may be a few units more or less.

    Args:
        value: Threshold of the scores, in the units of the criterion; any finite number.

    Raises:
        ValueError: If ``value`` is not a finite number.
    """

    value: float
    per_layer = True
    masks = True
    needs_scores = True

    def __post_init__(self) -> None:
        check_number(self, "value", self.value, hint="in the units of the criterion")

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The units that score at least the value, once the schedule has started."""
        return space.keep_from(self.value) if fraction > 0 else space.now

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """Check that some units can be removed; scores are not known yet."""
        if space.now == space.dense_units:
            check_moves(self, space, space.floor)

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """The weights that score less than the value, and those masked before."""
        return space.masked_below(self.value) if fraction > 0 else space.masked

    def check_weights(self, space: WeightSpace, events: int | None) -> None:
        """Nothing to check: scores are not known yet."""
