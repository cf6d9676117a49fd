"""The next step of a sparsity schedule: postponed while it is held back, halved after a rollback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning_prune.budgets.budget import Budget
from lightning_prune.schedules.schedule import Schedule

_ROUNDING = 1e-9


@dataclass(frozen=True)
class PruningStep:
    """One event of a schedule, or a part of one. Fractions are shares of the way to the budget, in [0, 1].

    Attributes:
        time: Time of the event, on the clock of the schedule.
        fraction: Fraction that the schedule asks for at this time.
        before: Fraction reached before the first step of the event.
        start: Fraction reached before this step.
        aim: Fraction to be reached by this step, at most ``fraction``.
    """

    time: float = 0.0
    fraction: float = 0.0
    before: float = 0.0
    start: float = 0.0
    aim: float = 0.0

    def scaled(self, budget: Budget) -> Budget:
        """``budget`` for this step; a budget per event, such as ``Count``, is reduced to the step's share of it."""
        if self.fraction == self.before:
            return budget
        return budget.scaled((self.aim - self.start) / (self.fraction - self.before))


class DueEvents:
    """Decides when the next pruning step is due, and how large it is.

    While an event is held back, the clock of the schedule is stopped, so that later events are postponed as well. A
    step that was rolled back is repeated at once, half as large; steps of this size follow, at the times of the next
    events, until the event is complete.

    Args:
        schedule: Sparsity schedule.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._held_since: float | None = None  # time on the schedule's clock
        self._delay = 0.0  # of the schedule's clock
        self._tried: int | None = None  # epoch in which the held event was tried last, until there is a validation
        self._last = PruningStep()
        self._largest: float | None = None  # bound on the size of steps, until the event is complete
        self._rolled_back = False

    def is_due(self, now: float, reached: float, epoch: int) -> bool:
        """Whether a step is due.

        Args:
            now: Time of the training, in the unit of the schedule.
            reached: Fraction that pruning has reached.
            epoch: Current epoch; an event is tried once in an epoch, and again after each validation.
        """
        ahead = self._schedule.fraction(self._time(now)) > max(reached, self._last.fraction)
        return (self._rolled_back or ahead) and self._tried != epoch

    def next(self, now: float, reached: float) -> PruningStep:
        """The step that is due at ``now``, if pruning has ``reached`` this fraction."""
        if reached >= self._last.fraction - _ROUNDING:
            time = self._time(now)
            fraction = self._schedule.fraction(time)
            return PruningStep(time, fraction, reached, reached, fraction)
        whole = self._last.fraction
        aim = whole if self._largest is None else reached + self._largest
        return replace(self._last, start=reached, aim=whole if aim > whole - _ROUNDING else aim)

    def hold(self, now: float, epoch: int) -> None:
        """Hold the due event back in this epoch, and stop the clock of the schedule."""
        self._held_since, self._tried = self._time(now), epoch

    def try_again(self) -> None:
        """Try an event that is held back again, after a validation."""
        self._tried = None

    def take(self, now: float, step: PruningStep) -> None:
        """Record that ``step`` is taken ``now``; the clock of the schedule runs on from the time of the step."""
        self._delay, self._held_since = now - step.time, None
        if (step.time, step.fraction) != (self._last.time, self._last.fraction):
            self._largest = None
        self._last, self._rolled_back = step, False

    def roll_back(self, tried: float, accepted: float) -> None:
        """Record a rollback from the fraction ``tried`` to ``accepted``; the next step is half as large."""
        if tried > accepted:
            self._largest, self._rolled_back = (tried - accepted) / 2, True

    def state_dict(self) -> dict[str, Any]:
        """State as plain numbers."""
        clock = {"held_since": self._held_since, "delay": self._delay, "tried": self._tried}
        steps = {"last": asdict(self._last), "most": self._largest, "undone": self._rolled_back}
        return {"pace": clock, "steps": steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; states of early versions have no ``steps``."""
        clock = state["pace"]
        self._held_since, self._delay, self._tried = clock["held_since"], clock["delay"], clock.get("tried")
        if "steps" in state:
            steps = state["steps"]
            self._last = PruningStep(**steps["last"])
            self._largest, self._rolled_back = steps["most"], steps["undone"]

    def _time(self, now: float) -> float:
        """The time on the schedule's clock."""
        return now - self._delay if self._held_since is None else self._held_since
