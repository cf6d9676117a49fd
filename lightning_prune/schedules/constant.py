"""Schedule with a single event."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_prune.schedules.schedule import Schedule, Unit


@dataclass(frozen=True)
class Constant(Schedule):
    """One-shot schedule: a single event that reaches the whole budget.

    Args:
        start: Time of the event, at least 0.
        unit: Unit of times: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the training, in [0, 1]).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [Constant(start=2).fraction(t) for t in range(4)]
        [0.0, 0.0, 1.0, 1.0]
    """

    start: float = 0
    unit: Unit = "epoch"

    def __post_init__(self) -> None:
        self._check_numbers("start")
        self._check()

    def fraction(self, time: float) -> float:
        """The fraction at ``time``: 0 before ``start``, then 1."""
        return float(time >= self.start)

    @property
    def last(self) -> float:
        """Time of the last event: ``start``."""
        return self.start

    @property
    def events(self) -> int | None:
        """Number of events: 1."""
        return 1
