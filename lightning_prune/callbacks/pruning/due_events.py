"""What a schedule asks for next: held back while somebody objects, in smaller steps where one was too large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_prune.callbacks.pruning.pace import HeldClock
from lightning_prune.callbacks.pruning.step_sizes import PruningStep, StepControl
from lightning_prune.schedules.schedule import Schedule


class Agenda:
    """The events of one training.

    Args:
        schedule: When, and how far each time.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule, self._pace, self._steps = schedule, HeldClock(), StepControl()

    def is_due(self, now: float, reached: float, epoch: int) -> bool:
        """Whether there is something to do.

        Args:
            now: The time of the training, in the schedule's unit.
            reached: How far pruning is.
            epoch: The current one.
        """
        fraction = self._schedule.fraction(self._pace.time(now))
        return self._steps.is_due(fraction, reached) and not self._pace.waits(epoch)

    def next(self, now: float, reached: float) -> PruningStep:
        """The step that is due."""
        time = self._pace.time(now)
        return self._steps.next(time, self._schedule.fraction(time), reached)

    def hold(self, now: float, epoch: int) -> None:
        """What is due does not happen now, in this epoch."""
        self._pace.hold(self._pace.time(now), epoch)

    def try_again(self) -> None:
        """There was a validation: whoever holds an event back may think otherwise now."""
        self._pace.try_again()

    def take(self, now: float, step: PruningStep) -> None:
        """The step is taken."""
        self._pace.go(now, step.time)
        self._steps.take(step)

    def take_back(self, tried: float, accepted: float) -> None:
        """Pruning is no longer at ``tried`` but again at ``accepted``."""
        self._steps.take_back(tried, accepted)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"pace": self._pace.state_dict(), "steps": self._steps.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._pace.load_state_dict(state["pace"])
        if "steps" in state:
            self._steps.load_state_dict(state["steps"])
