"""What all budgets share: the questions that pruners ask, and the checks of arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from lightning_prune.budgets.spaces.block_space import BlockSpace
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.latency_table import Conditions
from lightning_prune.budgets.spaces.weight_space import WeightSpace

BLOCK_BUDGETS = "Count, Ratio, Sparsity, Params or MACs"


class Budget(ABC):
    """Base of all budgets: from how far the schedule has gone to how much of everything is kept.

    Attributes:
        per_layer: Whether every group or parameter is looked at by itself, instead of all being ranked together.
        units: Whether the budget counts channels.
        masks: Whether the budget counts single weights.
        blocks: Whether the budget counts whole blocks.
        needs_scores: Whether ``mask_weights`` depends on scores, which do not exist before the first event.
        conditions: Under which latency is measured before ``keep_units`` is asked.
    """

    per_layer: bool
    units = True
    masks = False
    blocks = False
    needs_scores = False
    conditions: tuple[Conditions, ...] = ()

    @abstractmethod
    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """How many units each group keeps.

        Raises:
            BudgetError: If the budget cannot be met with at least one unit left in every group.
        """

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """How many weights are masked in all, or in each parameter."""
        raise TypeError(f"{self} counts what is physically removed; with Weights() use Sparsity, Ratio or Count")

    def remove_blocks(self, space: BlockSpace, fraction: float) -> int:
        """How many blocks of ``space`` are removed, the first of them first.

        Raises:
            BudgetError: If the budget cannot be met with the blocks that can be removed.
        """
        raise TypeError(f"{self} does not choose between blocks; with Blocks() use {BLOCK_BUDGETS}")

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """Raise ``BudgetError`` now if the end of the schedule, ``events`` events from here, cannot be met."""
        self.keep_units(space, 1.0)

    def check_weights(self, space: WeightSpace, events: int | None) -> None:
        """The same for masks."""
        self.mask_weights(space, 1.0)

    def check_block_size(self, weights: int) -> None:  # noqa: B027  (only counts can be too small for a block)
        """Raise ``BudgetError`` if no event can mask a block of ``weights`` weights."""

    def check_blocks(self, space: BlockSpace, events: int | None) -> None:
        """Raise ``BudgetError`` if the end of the schedule, ``events`` events from here, cannot be met with blocks."""
        self.remove_blocks(space, 1.0)

    def scaled(self, share: float) -> Budget:
        """The budget for a share of an event, in (0, 1]: what counts for whole events counts less."""
        return self


def check_share(budget: Budget, name: str, value: float) -> None:
    """Whether argument ``name`` lies in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{type(budget).__name__} {name}={value!r} is outside [0, 1]; half is 0.5")


def check_flag(budget: Budget) -> None:
    """Whether ``per_layer`` is True or False."""
    if not isinstance(budget.per_layer, bool):
        raise ValueError(f"{type(budget).__name__} per_layer={budget.per_layer!r} must be True or False")


def check_moves(budget: Budget, space: ChannelSpace, kept: Mapping[str, int]) -> None:
    """Whether anything goes.

    Raises:
        BudgetError: If not; the message says what the widths are asked for.
    """
    if kept == space.now:
        together = max(sum(candidate.quantum.values()) for candidate in space.candidates)
        clauses = [
            f"kept in multiples of {space.round_to} channels" if space.round_to > 1 or not space.limits else "",
            f"with at least {space.min_width} channels left" if space.min_width > 1 else "",
            f"some shrinking only together, {together} units a step" if together > 1 else "",
        ]
        lower = " and ".join(space.limits or ["round_to"])
        raise BudgetError(
            f"{budget} removes nothing here: groups of at most {max(space.now.values())} units, "
            f"{', '.join(filter(None, clauses))}. Lower {lower} or remove more."
        )


def some(names: Iterable[str]) -> str:
    """The first two of ``names``."""
    first, *others = names
    return ", ".join([first, *others[:1], *["..."] * (len(others) > 1)])


class BudgetError(ValueError):
    """A budget that this network cannot meet; the message says what it can."""
