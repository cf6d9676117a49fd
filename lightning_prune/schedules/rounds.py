"""Schedule of equal rounds with fine-tuning between them."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from lightning_prune.network.argument_checks import check_integer
from lightning_prune.schedules.schedule import ROUNDING, Schedule, Unit


@dataclass(frozen=True)
class Rounds(Schedule):
    """Iterative schedule: ``count`` rounds that remove the same amount, with fine-tuning between them.

    Args:
        start: Time of the first round, at least 0.
        every: Time between rounds, above 0.
        count: Number of rounds, at least 1.
        unit: Unit of times: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the training, in [0, 1]).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [Rounds(start=2, every=2, count=4).fraction(t) for t in range(10)]
        [0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0]
    """

    start: float
    every: float
    count: int
    unit: Unit = "epoch"

    def __post_init__(self) -> None:
        self._check_numbers("start")
        self._check_positive("every")
        check_integer(self, "count", self.count, minimum=1)
        self._check()

    def fraction(self, time: float) -> float:
        """The fraction at ``time``: number of rounds until then over ``count``."""
        if time >= self.last:
            return 1.0
        passed = floor((time - self.start) / self.every + ROUNDING) + 1
        return min(max(passed, 0), self.count) / self.count

    @property
    def last(self) -> float:
        """Time of the last round."""
        return self.start + (self.count - 1) * self.every

    @property
    def events(self) -> int | None:
        """Number of events: ``count``."""
        return self.count
