"""From 0 at one time to 1 at another, along a curve."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import ceil, cos, exp, floor, pi, pow

from lightning_prune.network.argument_checks import check_number
from lightning_prune.schedules.schedule import ROUNDING, Schedule, Unit


@dataclass(frozen=True)
class Ramp(Schedule):
    """From 0 at ``start`` to 1 at ``end``, in events ``every`` so much time."""

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
        """The curve at the last event up to ``time``."""
        if time >= self.end:
            return 1.0
        passed = floor((time - self.start) / self.every + ROUNDING)
        progress = passed * self.every / (self.end - self.start)
        if progress <= 0:
            return 0.0
        return 1.0 if progress >= 1 else float(self._shape(progress))

    @abstractmethod
    def _shape(self, progress: float) -> float:
        """The fraction at ``progress`` of the ramp, which is between 0 and 1."""

    @property
    def last(self) -> float:
        """``end``."""
        return self.end

    @property
    def events(self) -> int | None:
        """How many fractions whole epochs or steps see; None for shares, which depend on the steps of the training."""
        if self.unit == "share":
            return None
        final = ceil(self.end)
        looks = [*range(ceil(self.start), final, max(floor(self.every), 1)), final - 1, final]  # misses no event
        return len({self.fraction(time) for time in looks} - {0.0})


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
    """Much early, little late: 1 − (1 − progress)³, or another power.

    Zhu & Gupta, 'To prune, or not to prune' (2017), eq. 1, with an initial sparsity of 0.

    Args:
        start: Time at which the ramp leaves 0; the first removal is one ``every`` later.
        end: Time at which the budget is reached.
        every: Time between events.
        unit: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the whole training).
        power: The exponent, positive; 1 is ``Linear``, more is earlier.

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
    """The same share of what is left in every event: (1 − left^progress) / (1 − left).

    'Remove p % of the remaining weights each round', as iterative magnitude pruning does (Frankle & Carbin, 'The
    Lottery Ticket Hypothesis', 2019), and the exponential schedule of SynFlow (Tanaka et al. 2020, algorithm 1).

    Args:
        start: Time at which the ramp leaves 0; the first removal is one ``every`` later.
        end: Time at which the budget is reached.
        every: Time between events.
        unit: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the whole training).
        left: What the budget leaves of the original, in (0, 1): 0.1 for ``Sparsity(0.9)`` or ``MACs(keep=0.1)``.

    Example:
        A fifth of the remaining weights in each of three rounds, with ``Sparsity(0.488)``:

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
    """Slow, fast, slow: (1 − cos(π progress)) / 2.

    Args:
        start: Time at which the ramp leaves 0; the first removal is one ``every`` later.
        end: Time at which the budget is reached.
        every: Time between events.
        unit: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the whole training).

    Example:
        >>> [round(Cosine(start=0, end=4).fraction(t), 4) for t in range(5)]
        [0.0, 0.1464, 0.5, 0.8536, 1.0]
    """

    def _shape(self, progress: float) -> float:
        return (1 - cos(pi * progress)) / 2


@dataclass(frozen=True)
class OneCycle(Ramp):
    """Little, then much in the first half, then little: (1 + e^(−alpha + beta)) / (1 + e^(−alpha progress + beta)).

    Hubens et al., 'One-Cycle Pruning: Pruning ConvNets Under a Tight Training Budget' (2022), where it lasts as long as
    the training. The formula is at 0.7 % when it starts; here, as in all ramps, nothing goes before the first event.

    Args:
        start: Time at which the ramp leaves 0; the first removal is one ``every`` later.
        end: Time at which the budget is reached.
        every: Time between events.
        unit: ``"epoch"``, ``"step"`` (optimizer steps) or ``"share"`` (of the whole training).
        alpha: How steep, positive.
        beta: Where: the middle is at beta / alpha of the ramp, so it lies in [0, alpha].

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
        exponent = min(self.beta - self.alpha * progress, 700)  # more would overflow
        return (1 + exp(self.beta - self.alpha)) / (1 + exp(exponent))
