"""Budgets: until what. Shares are removed, ``keep`` is kept, counts are per event; the original is the reference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lightning_prune.search import BudgetError, masked, shrink
from lightning_prune.spaces import ChannelSpace, WeightSpace


class Budget(ABC):
    """Base of all budgets: from how far the schedule has gone to how much of everything is kept.

    Attributes:
        per_layer: Whether every group or parameter gives the same share, instead of all being ranked together.
    """

    per_layer: bool
    masks = False  # whether the budget also counts single weights

    @abstractmethod
    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """How many units each group keeps.

        Raises:
            BudgetError: If the budget cannot be met with at least one unit left in every group.
        """

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """How many weights are masked in all, or in each parameter."""
        raise TypeError(f"{self} counts what is physically removed; with Weights() use Sparsity, Ratio or Count")

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """Raise ``BudgetError`` now if the end of the schedule, ``events`` events from here, cannot be met."""
        self.keep_units(space, 1.0)

    def check_weights(self, space: WeightSpace, events: int | None) -> None:
        """The same for masks."""
        self.mask_weights(space, 1.0)


def _check_share(budget: Budget, name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{type(budget).__name__} {name}={value!r} is outside [0, 1]; half is 0.5")


def _check_flag(budget: Budget) -> None:
    if not isinstance(budget.per_layer, bool):
        raise ValueError(f"{type(budget).__name__} per_layer={budget.per_layer!r} must be True or False")


def _check_moves(budget: Budget, space: ChannelSpace, kept: Mapping[str, int]) -> None:
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


def _some(names: Iterable[str]) -> str:
    first, *others = names
    return ", ".join([first, *others[:1], *["..."] * (len(others) > 1)])


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

    def __post_init__(self) -> None:
        _check_flag(self)
        _check_share(self, "share", self.share)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The share of every group, or the lowest-ranked share of all."""
        total = sum(space.original.values()) + sum(space.exhausted.values())
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
        if self.share > 0 and space.now == space.original:
            if not self.per_layer:
                self._check_steps(space)
            _check_moves(self, space, kept)

    def _check_steps(self, space: ChannelSpace) -> None:
        total = sum(space.original.values())
        for candidate in space.candidates:
            units = sum(candidate.quantum.values())
            if candidate.bundled and candidate.jump and units > round(self.share * total):
                raise BudgetError(
                    f"{self} is {round(self.share * total)} units, but {_some(candidate.quantum)} shrink only "
                    f"together, by {units} units at once; ask for share={units / total:.4f} or more, or exclude them "
                    "by the scope"
                )

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """The share of every parameter, or of all."""
        return masked(self, space, self.share * fraction)


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

    def __post_init__(self) -> None:
        _check_flag(self)
        _check_share(self, "sparsity", self.sparsity)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The fewest removals that bring the parameters down to the target."""
        return shrink(self, space, space.params, space.original_params * (1 - self.sparsity * fraction), "parameters")

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """The share of every parameter, or of all."""
        return masked(self, space, self.sparsity * fraction)


@dataclass(frozen=True)
class Count(Budget):
    """So many units (filters), or weights, are removed in every event.

    'The 200 lowest-ranked filters a round', as in Molchanov et al. 2016. Groups that shrink only together lose the
    units of whole steps, as many as do not exceed the count; ``Channels(round_to=...)`` rounds all other groups to
    the nearest width, which may be a few units more.

    Args:
        count: Number removed in each event, at least 1.
        per_layer: Whether that many go from every group or parameter, instead of from all together.
    """

    count: int
    per_layer: bool = False
    masks = True

    def __post_init__(self) -> None:
        _check_flag(self)
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"Count count={self.count!r} must be a whole number of at least 1")

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The lowest-ranked units go."""
        for candidate in space.candidates:
            units = list(candidate.quantum.values())
            at_once = candidate.jump * (max(units) if self.per_layer else sum(units))
            if candidate.bundled and at_once > self.count:
                raise BudgetError(
                    f"{self}: {_some(candidate.quantum)} shrink only together, by {at_once} units at once; use "
                    f"count={at_once} or more, or exclude them by the scope"
                )
        if self.per_layer:
            return space.keep_each(self.count)
        if self.count > space.removable:
            raise BudgetError(f"{self}: only {space.removable} more units can go with one left everywhere.")
        return space.keep_after(self.count, at_most=True)

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """All events together must find enough units, and rounding must let some go."""
        _check_moves(self, space, self.keep_units(space, 1.0))
        if not self.per_layer and events is not None:
            self._check_total(events, space.removable, "units")

    def check_weights(self, space: WeightSpace, events: int | None) -> None:
        """All events together must find enough weights."""
        self.mask_weights(space, 1.0)
        if not self.per_layer and events is not None:
            self._check_total(events, space.maskable - sum(space.masked.values()), "weights")

    def _check_total(self, events: int, available: int, unit: str) -> None:
        if self.count * events > available:
            cure = f"count={available // events}" if available >= events else f"{available} events of count=1"
            raise BudgetError(
                f"{self} in {events} events wants {self.count * events} {unit}, but only {available} can go with one "
                f"left everywhere; at most {cure}"
            )

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """So many more than are masked already."""
        if self.per_layer:
            return {name: min(space.masked[name] + self.count, size - 1) for name, size in space.sizes.items()}
        total = sum(space.masked.values()) + self.count
        if total > space.maskable:
            raise BudgetError(f"{self}: only {space.maskable - total + self.count} more weights can be masked")
        return total


@dataclass(frozen=True)
class Params(Budget):
    """The parameters shrink to a share of the original.

    Args:
        keep: Share of the parameters kept, in [0, 1].
        per_layer: Whether every group gives the same share of its units.
    """

    keep: float
    per_layer: bool = False

    def __post_init__(self) -> None:
        _check_flag(self)
        _check_share(self, "keep", self.keep)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The fewest removals that bring the parameters down to the target."""
        target = space.original_params * (1 - (1 - self.keep) * fraction)
        return shrink(self, space, space.params, target, "parameters")


@dataclass(frozen=True)
class MACs(Budget):
    """The multiply-accumulates of a forward pass shrink to a share of the original.

    Args:
        keep: Share of the MACs kept, in [0, 1].
        per_layer: Whether every group gives the same share of its units.
    """

    keep: float
    per_layer: bool = False

    def __post_init__(self) -> None:
        _check_flag(self)
        _check_share(self, "keep", self.keep)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The fewest removals that bring the MACs down to the target."""
        return shrink(self, space, space.macs, space.original_macs * (1 - (1 - self.keep) * fraction), "MACs")
