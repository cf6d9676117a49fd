"""Schedule from an explicit list of events."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from lightning_prune.network.argument_checks import check_number
from lightning_prune.schedules.schedule import ROUNDING, Schedule, Unit


@dataclass(frozen=True)
class Steps(Schedule):
    """Explicit schedule: from ``times[i]`` on, the fraction is ``fractions[i]``.

    Args:
        times: Times of the events, ascending, at least 0; a list is converted to a tuple.
        fractions: Fractions of the budget, ascending, in (0, 1], the last one 1; one for each time.
        unit: Unit of times: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the training, in [0, 1]).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> schedule = Steps(times=[1, 2, 5], fractions=[0.5, 0.8, 1.0])
        >>> [schedule.fraction(t) for t in range(7)]
        [0.0, 0.5, 0.8, 0.8, 0.8, 1.0, 1.0]
    """

    times: tuple[float, ...]
    fractions: tuple[float, ...]
    unit: Unit = "epoch"

    def __post_init__(self) -> None:
        self._freeze("times", "[5, 10]")
        self._freeze("fractions", "[0.5, 1.0]")
        if len(self.times) != len(self.fractions):
            raise ValueError(
                f"Steps has {len(self.times)} times={self.times}, but {len(self.fractions)} "
                f"fractions={self.fractions}; give one fraction for each time"
            )
        if self.times[0] < 0:
            raise ValueError(f"Steps times[0]={self.times[0]} is negative; 0 is the start of the training")
        if self.fractions[0] <= 0 or self.fractions[-1] != 1:
            raise ValueError(f"Steps fractions={self.fractions} must lie in (0, 1] and end at 1, which is the budget")
        self._check()

    def _freeze(self, argument: str, example: str) -> None:
        values = getattr(self, argument)
        if not isinstance(values, (list, tuple)) or not values:
            raise ValueError(f"Steps {argument}={values!r} must be a list of at least one number, such as {example}")
        for index, value in enumerate(values):
            check_number(self, f"{argument}[{index}]", value, hint="such as 5 or 0.5")
        for index, (before, after) in enumerate(pairwise(values), start=1):
            if after <= before:
                raise ValueError(
                    f"Steps {argument}[{index}]={after} must be greater than the entry before it, {before}; "
                    "list them in ascending order"
                )
        object.__setattr__(self, argument, tuple(values))  # YAML gives lists, which cannot be hashed

    def fraction(self, time: float) -> float:
        """The fraction at ``time``: that of the latest event."""
        passed = bisect_right(self.times, time + ROUNDING)
        return float(self.fractions[passed - 1]) if passed else 0.0

    @property
    def start(self) -> float:  # type: ignore[override]
        """Time of the first event."""
        return self.times[0]

    @property
    def last(self) -> float:
        """Time of the last event."""
        return self.times[-1]

    @property
    def events(self) -> int | None:
        """Number of events."""
        return len(self.times)
