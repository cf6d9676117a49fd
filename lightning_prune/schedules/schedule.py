"""Base class of schedules: the unit of time, and checks of arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

from lightning_prune.network.argument_checks import check_choice, check_number

Unit = Literal["epoch", "step", "share"]

ROUNDING = 1e-9  # tolerance for rounding errors of sums of shares such as 0.1


class Schedule(ABC):
    """Fraction of the budget that is reached at a given time; base of all schedules.

    Attributes:
        start: Time at which it starts: number of completed epochs or optimizer steps, or share of the training in
            [0, 1]. The first event is at ``start``; for ramps, which are 0 there, it is at ``start + every``.
        unit: Unit of times: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (share of the training).
    """

    start: float
    unit: Unit

    @abstractmethod
    def fraction(self, time: float) -> float:
        """The fraction of the budget at ``time``: 0 before ``start``, 1 from ``last`` on, never decreasing."""

    @property
    @abstractmethod
    def last(self) -> float:
        """Time of the last event."""

    @property
    def events(self) -> int | None:
        """Number of events; None where it depends on the length of the training."""
        return None

    def _check_numbers(self, *arguments: str) -> None:
        for argument in arguments:
            check_number(self, argument, getattr(self, argument), hint="such as 5 or 0.5")

    def _check_positive(self, argument: str) -> None:
        check_number(self, argument, getattr(self, argument), above=0)

    def _check(self) -> None:
        name = type(self).__name__
        check_choice(self, "unit", self.unit, get_args(Unit))
        if self.start < 0:
            raise ValueError(f"{name} start={self.start} is negative; 0 is the start of the training")
        if self.unit == "share" and self.last > 1 + ROUNDING:
            raise ValueError(f"{name} ends at share {self.last:g} of the training; shares lie in [0, 1]")
        if self.unit != "share" and 0 < self.last < 1:
            raise ValueError(
                f"{name} ends at {self.unit} {self.last:g}, within the first {self.unit}; did you mean unit='share' "
                "(of the whole training)?"
            )
