"""Budget: base class of the target sizes, and checks that several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from lightning_prune.budgets.spaces.block_space import BlockSpace
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.latency_table import Conditions
from lightning_prune.budgets.spaces.weight_space import WeightSpace

BLOCK_BUDGETS = "Count, Ratio, Sparsity, Params or MACs"


class Budget(ABC):
    """Base class of all budgets: target sizes, which give the widths, masks or blocks at a fraction of the schedule.

    Shares refer to the dense network. At fraction 0 of the schedule the target is the dense network, at fraction 1 it
    is the budget; between them it is interpolated linearly. A subclass implements ``keep_units``, ``mask_weights`` and
    ``remove_blocks`` for the granularities that it supports, and sets ``units``, ``masks`` and ``blocks`` accordingly.

    Attributes:
        per_layer: Whether each group or parameter is pruned by itself, instead of ranking all of them together.
        units: Whether the budget supports ``Channels()``.
        masks: Whether the budget supports ``Weights()``.
        blocks: Whether the budget supports ``Blocks()``.
        needs_scores: Whether ``mask_weights`` depends on scores, which do not exist before the first event.
        conditions: Conditions under which latency tables are measured before ``keep_units`` is called.
    """

    per_layer: bool
    units = True
    masks = False
    blocks = False
    needs_scores = False
    conditions: tuple[Conditions, ...] = ()

    @abstractmethod
    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """Group name -> number of units kept.

        Args:
            space: The channels that can be removed.
            fraction: Fraction of the schedule, in [0, 1].

        Raises:
            BudgetError: If the budget cannot be met with at least one unit kept in every group.
        """

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """Number of masked weights, in total or by parameter name; includes those masked before.

        Args:
            space: The weights that can be masked.
            fraction: Fraction of the schedule, in [0, 1].

        Raises:
            BudgetError: If the budget cannot be met with at least one weight kept in every parameter.
        """
        raise TypeError(f"{self} counts what is physically removed; with Weights() use Sparsity, Ratio or Count")

    def remove_blocks(self, space: BlockSpace, fraction: float) -> int:
        """Number of blocks to remove, in the order of ``space``.

        Args:
            space: The blocks that can be removed.
            fraction: Fraction of the schedule, in [0, 1].

        Raises:
            BudgetError: If the budget cannot be met with the blocks that can be removed.
        """
        raise TypeError(f"{self} does not choose between blocks; with Blocks() use {BLOCK_BUDGETS}")

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """Raise ``BudgetError`` if the remaining ``events`` cannot meet the budget with channels."""
        self.keep_units(space, 1.0)

    def check_weights(self, space: WeightSpace, events: int | None) -> None:
        """Raise ``BudgetError`` if the remaining ``events`` cannot meet the budget with masks."""
        self.mask_weights(space, 1.0)

    def check_block_size(self, weights: int) -> None:  # noqa: B027  (only a count can be smaller than a block)
        """Raise ``BudgetError`` if no event can mask a block of ``weights`` weights."""

    def check_blocks(self, space: BlockSpace, events: int | None) -> None:
        """Raise ``BudgetError`` if the remaining ``events`` cannot meet the budget with blocks."""
        self.remove_blocks(space, 1.0)

    def scaled(self, share: float) -> Budget:
        """The budget for a part of an event; ``share`` in (0, 1] scales counts, which are per event."""
        return self


def check_moves(budget: Budget, space: ChannelSpace, kept: Mapping[str, int]) -> None:
    """Check that the widths ``kept`` remove at least one unit.

    Raises:
        BudgetError: If they do not; the message names the limits of the widths.
    """
    if kept == space.now:
        together = max(sum(candidate.quantum.values()) for candidate in space.candidates)
        clauses = [
            f"kept in multiples of {space.round_to} channels" if space.round_to > 1 or not space.limits else "",
            f"with at least {space.min_width} channels each" if space.min_width > 1 else "",
            f"some pruned only together, {together} units per step" if together > 1 else "",
        ]
        lower = " and ".join(space.limits or ["round_to"])
        raise BudgetError(
            f"{budget} removes nothing here: groups of at most {max(space.now.values())} units, "
            f"{', '.join(filter(None, clauses))}. Lower {lower} or remove more."
        )


def some(names: Iterable[str]) -> str:
    """The first two of ``names``, as text."""
    first, *others = names
    return ", ".join([first, *others[:1], *["..."] * (len(others) > 1)])


class BudgetError(ValueError):
    """A budget that cannot be met with this network; the message names what can be met."""
