"""How large the steps of a schedule are: as it says, or smaller where one was too large."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning_prune.budgets.budget import Budget

_ROUNDING = 1e-9


@dataclass(frozen=True)
class PruningStep:
    """One event, or a part of it.

    Attributes:
        time: When the schedule asked for the event, on its own clock.
        fraction: How far the schedule wants to be then.
        before: How far pruning was when the schedule asked first.
        start: How far it is now.
        aim: How far this step goes, ``fraction`` at most.
    """

    time: float = 0.0
    fraction: float = 0.0
    before: float = 0.0
    start: float = 0.0
    aim: float = 0.0

    def scaled(self, budget: Budget) -> Budget:
        """``budget`` for this step: where it counts for whole events, then for the share of one that is taken."""
        if self.fraction == self.before:
            return budget
        return budget.scaled((self.aim - self.start) / (self.fraction - self.before))


class StepControl:
    """Halves a step that was taken back, and repeats its event until the schedule has been caught up with."""

    def __init__(self) -> None:
        self._last = PruningStep()
        self._most: float | None = None  # the largest step that is tried until then
        self._undone = False

    def is_due(self, fraction: float, reached: float) -> bool:
        """Whether there is something to do when the schedule is at ``fraction`` and pruning has ``reached`` this far.

        A step that was taken back is tried again at once; what is left of an event waits for the time of the next.
        """
        return self._undone or fraction > max(reached, self._last.fraction)

    def next(self, time: float, fraction: float, reached: float) -> PruningStep:
        """The step to take when the schedule, at ``time``, wants to be at ``fraction``."""
        if reached >= self._last.fraction - _ROUNDING:
            return PruningStep(time, fraction, reached, reached, fraction)
        last = self._last
        most = last.fraction if self._most is None else reached + self._most
        return replace(last, start=reached, aim=last.fraction if most > last.fraction - _ROUNDING else most)

    def take(self, step: PruningStep) -> None:
        """The step is taken."""
        self._most = self._most if (step.time, step.fraction) == (self._last.time, self._last.fraction) else None
        self._last, self._undone = step, False

    def take_back(self, tried: float, accepted: float) -> None:
        """Pruning is no longer at ``tried`` but again at ``accepted``."""
        if tried > accepted:
            self._most, self._undone = (tried - accepted) / 2, True

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"last": asdict(self._last), "most": self._most, "undone": self._undone}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._last, self._most, self._undone = PruningStep(**state["last"]), state["most"], state["undone"]
