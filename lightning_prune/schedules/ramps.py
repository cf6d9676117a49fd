"""Gradual schedules: a fraction that rises from 0 to 1 along a curve."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import ceil, cos, exp, floor, pi, pow

from lightning_prune.network.argument_checks import check_number
from lightning_prune.schedules.schedule import ROUNDING, Schedule, Unit


@dataclass(frozen=True)
class Ramp(Schedule):
    """Base of gradual schedules: from 0 at ``start`` to 1 at ``end``, with an event every ``every``.

    Args:
        start: Time at which the ramp starts, at least 0; the first event is at ``start + every``.
        end: Time at which the budget is reached, after ``start``.
        every: Time between events, above 0.
        unit: Unit of times: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the training, in [0, 1]).

    Raises:
        ValueError: If an argument is out of range.
    """

    start: float
    end: float
    every: float = 1
    unit: Unit = "epoch"

    def __post_init__(self) -> None:
        self._check_numbers("start", "end")
        if self.end <= self.start:
            raise ValueError(f"{type(self).__name__} end={self.end} must lie after start={self.start}")
        self._check_positive("every")
        self._check()

    def fraction(self, time: float) -> float:
        """The fraction at ``time``: the curve at the latest event."""
        if time >= self.end:
            return 1.0
        passed = floor((time - self.start) / self.every + ROUNDING)
        progress = passed * self.every / (self.end - self.start)
        if progress <= 0:
            return 0.0
        return 1.0 if progress >= 1 else float(self._shape(progress))

    @abstractmethod
    def _shape(self, progress: float) -> float:
        """The curve: the fraction at ``progress``, both between 0 and 1."""

    @property
    def last(self) -> float:
        """Time of the last event: ``end``."""
        return self.end

    @property
    def events(self) -> int | None:
        """Number of events at whole epochs or steps; None for shares: it depends on the length of the training."""
        if self.unit == "share":
            return None
        final = ceil(self.end)
        times = [*range(ceil(self.start), final, max(floor(self.every), 1)), final - 1, final]  # includes every event
        return len({self.fraction(time) for time in times} - {0.0})


@dataclass(frozen=True)
class Linear(Ramp):
    """Linear schedule: every event removes the same amount.

    Args:
        start: Time at which the ramp starts, at least 0; the first event is at ``start + every``.
        end: Time at which the budget is reached, after ``start``.
        every: Time between events, above 0.
        unit: Unit of times: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the training, in [0, 1]).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [Linear(start=1, end=5, every=2).fraction(t) for t in range(7)]
        [0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    """

    def _shape(self, progress: float) -> float:
        return progress


@dataclass(frozen=True)
class Cubic(Ramp):
    """Cubic schedule: 1 − (1 − progress)³, with large steps early and small steps late.

    Zhu & Gupta 2017, 'To prune, or not to prune: exploring the efficacy of pruning for model compression', eq. 1, with
    an initial sparsity of 0.

    Args:
        start: Time at which the ramp starts, at least 0; the first event is at ``start + every``.
        end: Time at which the budget is reached, after ``start``.
        every: Time between events, above 0.
        unit: Unit of times: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the training, in [0, 1]).
        power: The exponent, above 0; 1 is ``Linear``, larger values remove more at early events.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [Cubic(start=0, end=4).fraction(t) for t in range(5)]
        [0.0, 0.578125, 0.875, 0.984375, 1.0]
        >>> [Cubic(start=0, end=4, power=2).fraction(t) for t in range(5)]
        [0.0, 0.4375, 0.75, 0.9375, 1.0]
    """

    power: float = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("power")

    def _shape(self, progress: float) -> float:
        return 1 - pow(1 - progress, self.power)


@dataclass(frozen=True)
class Exponential(Ramp):
    """Exponential schedule: (1 − left^progress) / (1 − left), the same share of the remaining weights per event.

    As iterative magnitude pruning in Frankle & Carbin 2019, 'The lottery ticket hypothesis: finding sparse, trainable
    neural networks', and the exponential schedule of SynFlow (Tanaka et al. 2020, 'Pruning neural networks without any
    data by iteratively conserving synaptic flow', algorithm 1).

    Args:
        start: Time at which the ramp starts, at least 0; the first event is at ``start + every``.
        end: Time at which the budget is reached, after ``start``.
        every: Time between events, above 0.
        unit: Unit of times: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the training, in [0, 1]).
        left: Share of the original that the budget keeps, in (0, 1): 0.1 for ``Sparsity(0.9)`` or ``MACs(keep=0.1)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        Three rounds that remove a fifth of the remaining weights each, with ``Sparsity(0.488)``:

        >>> schedule = Exponential(start=0, end=3, left=0.512)
        >>> [round(1 - 0.488 * schedule.fraction(t), 3) for t in range(5)]
        [1.0, 0.8, 0.64, 0.512, 0.512]
    """

    left: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "left", self.left, above=0, below=1, hint="such as 0.1 for Sparsity(0.9)")

    def _shape(self, progress: float) -> float:
        return (1 - pow(self.left, progress)) / (1 - self.left)


@dataclass(frozen=True)
class Cosine(Ramp):
    """Cosine schedule: (1 − cos(π progress)) / 2, with small steps at both ends.

    Args:
        start: Time at which the ramp starts, at least 0; the first event is at ``start + every``.
        end: Time at which the budget is reached, after ``start``.
        every: Time between events, above 0.
        unit: Unit of times: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the training, in [0, 1]).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [round(Cosine(start=0, end=4).fraction(t), 4) for t in range(5)]
        [0.0, 0.1464, 0.5, 0.8536, 1.0]
    """

    def _shape(self, progress: float) -> float:
        return (1 - cos(pi * progress)) / 2


@dataclass(frozen=True)
class OneCycle(Ramp):
    """One-cycle schedule: (1 + e^(−alpha + beta)) / (1 + e^(−alpha progress + beta)), a sigmoid.

    Hubens et al. 2022, 'One-cycle pruning: pruning ConvNets under a tight training budget', where the schedule lasts as
    long as the training. The formula starts at 0.7 %; here, as in all ramps, nothing is removed before the first event.

    Args:
        start: Time at which the ramp starts, at least 0; the first event is at ``start + every``.
        end: Time at which the budget is reached, after ``start``.
        every: Time between events, above 0.
        unit: Unit of times: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the training, in [0, 1]).
        alpha: Steepness of the sigmoid, above 0.
        beta: Position, in [0, alpha]: the sigmoid is steepest at the progress beta / alpha.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> [round(OneCycle(start=0, end=4).fraction(t), 4) for t in range(5)]
        [0.0, 0.1824, 0.8809, 0.9961, 1.0]
    """

    alpha: float = 14
    beta: float = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("alpha")
        self._check_numbers("beta")
        if not 0 <= self.beta <= self.alpha:
            raise ValueError(
                f"OneCycle beta={self.beta} must lie in [0, alpha={self.alpha}]; the middle is at beta / alpha"
            )

    def _shape(self, progress: float) -> float:
        exponent = min(self.beta - self.alpha * progress, 700)  # larger values overflow
        return (1 + exp(self.beta - self.alpha)) / (1 + exp(exponent))
