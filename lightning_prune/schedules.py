"""Schedules: how far pruning has gone at a given time.

A schedule answers with a fraction in [0, 1]: 0 is the dense network, 1 is the budget. It has no state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import floor, isfinite
from numbers import Real
from typing import Literal

Unit = Literal["epoch", "step", "share"]

_ROUNDING = 1e-9  # what sums of shares such as 0.1 may be off


class Schedule(ABC):
    """Base of all schedules.

    Attributes:
        start: When it begins: epochs or optimizer steps done, or the share of the training in [0, 1]. The first event
            is then; for ramps, which leave 0 there, the first removal is one ``every`` later.
    """

    start: float
    unit: Unit

    @abstractmethod
    def fraction(self, time: float) -> float:
        """How far to be at ``time``: 0 before ``start``, 1 at the end; never decreasing."""

    @property
    @abstractmethod
    def last(self) -> float:
        """Time of the last event."""

    @property
    def events(self) -> int | None:
        """Number of events, None where it depends on the training."""
        return None

    def _check_times(self, *arguments: str) -> None:
        for argument in arguments:
            value = getattr(self, argument)
            if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value):
                raise ValueError(
                    f"{type(self).__name__} {argument}={value!r} must be a finite number, such as 5 or 0.5"
                )

    def _check(self) -> None:
        name = type(self).__name__
        if self.unit not in ("epoch", "step", "share"):
            raise ValueError(f"{name} unit={self.unit!r} is not known; use 'epoch', 'step' or 'share'")
        if self.start < 0:
            raise ValueError(f"{name} start={self.start} is negative; 0 is the beginning of the training")
        if self.unit == "share" and self.last > 1 + _ROUNDING:
            raise ValueError(f"{name} ends at share {self.last:g} of the training; shares lie in [0, 1]")
        if self.unit != "share" and 0 < self.last < 1:
            raise ValueError(
                f"{name} ends at {self.unit} {self.last:g}, within the first {self.unit}; did you mean unit='share' "
                "(of the whole training)?"
            )


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
        self._check_times("start")
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


@dataclass(frozen=True)
class Ramp(Schedule):
    """From 0 at ``start`` to 1 at ``end``, in events ``every`` so much time."""

    start: float
    end: float
    every: float = 1
    unit: Unit = "epoch"

    def __post_init__(self) -> None:
        self._check_times("start", "end", "every")
        if self.end <= self.start:
            raise ValueError(f"{type(self).__name__} end={self.end} must lie after start={self.start}")
        if self.every <= 0:
            raise ValueError(f"{type(self).__name__} every={self.every} must be positive")
        self._check()

    def fraction(self, time: float) -> float:
        """The ramp at the last event up to ``time``."""
        if time < self.start:
            return 0.0
        if time >= self.end:
            return 1.0
        passed = floor((time - self.start) / self.every + _ROUNDING) * self.every
        return self._shape(min(passed / (self.end - self.start), 1.0))

    @abstractmethod
    def _shape(self, progress: float) -> float:
        """The fraction at ``progress`` in [0, 1] of the ramp."""

    @property
    def last(self) -> float:
        """``end``."""
        return self.end


@dataclass(frozen=True)
class Linear(Ramp):
    """The same amount in every event.

    Args:
        start: Time at which the ramp leaves 0; the first removal is one ``every`` later.
        end: Time at which the budget is reached.
        every: Time between events.
        unit: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the whole training).

    Example:
        >>> [Linear(start=1, end=5, every=2).fraction(t) for t in range(7)]
        [0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    """

    def _shape(self, progress: float) -> float:
        return progress


@dataclass(frozen=True)
class Cubic(Ramp):
    """Much early, little late: 1 − (1 − progress)³.

    Zhu & Gupta, 'To prune, or not to prune' (2017), eq. 1, with an initial sparsity of 0.

    Args:
        start: Time at which the ramp leaves 0; the first removal is one ``every`` later.
        end: Time at which the budget is reached.
        every: Time between events.
        unit: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the whole training).

    Example:
        >>> [Cubic(start=0, end=4).fraction(t) for t in range(5)]
        [0.0, 0.578125, 0.875, 0.984375, 1.0]
    """

    def _shape(self, progress: float) -> float:
        return 1 - (1 - progress) ** 3


@dataclass(frozen=True)
class Rounds(Schedule):
    """``count`` equal rounds, the first at ``start``, with ``every`` so much time of fine-tuning between them.

    Args:
        start: Time of the first round.
        every: Time between rounds.
        count: Number of rounds.
        unit: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the whole training).

    Example:
        >>> [Rounds(start=2, every=2, count=4).fraction(t) for t in range(10)]
        [0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0]
    """

    start: float
    every: float
    count: int
    unit: Unit = "epoch"

    def __post_init__(self) -> None:
        self._check_times("start", "every")
        if self.every <= 0:
            raise ValueError(f"Rounds every={self.every} must be positive")
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"Rounds count={self.count!r} must be a whole number of at least 1")
        self._check()

    def fraction(self, time: float) -> float:
        """Rounds passed at ``time``, over ``count``."""
        passed = floor((time - self.start) / self.every + _ROUNDING) + 1
        return min(max(passed, 0), self.count) / self.count

    @property
    def last(self) -> float:
        """Time of the last round."""
        return self.start + (self.count - 1) * self.every

    @property
    def events(self) -> int | None:
        """``count``."""
        return self.count
