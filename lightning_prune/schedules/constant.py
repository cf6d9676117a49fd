"""One event."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_prune.schedules.schedule import Schedule, Unit


@dataclass(frozen=True)
class Constant(Schedule):
    """Everything at once.

    Args:
        start: Time of the one event.
        unit: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the whole training).

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
        """0 before ``start``, then 1."""
        return float(time >= self.start)

    @property
    def last(self) -> float:
        """``start``."""
        return self.start

    @property
    def events(self) -> int | None:
        """One."""
        return 1
