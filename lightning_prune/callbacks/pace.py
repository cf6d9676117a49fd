"""The schedule's clock, which stands still while an event is held back."""

from __future__ import annotations

from typing import Any


class Pace:
    """Turns the time of the training into the time of the schedule.

    Attributes:
        waiting: Whether a held event waits for a validation or an epoch before it is tried again.
    """

    def __init__(self) -> None:
        self.waiting = False
        self._held_since: float | None = None
        self._delay = 0.0

    def time(self, now: float) -> float:
        """The time of the schedule when the training is at ``now``, both in the schedule's unit."""
        return now - self._delay if self._held_since is None else self._held_since

    def hold(self, time: float) -> None:
        """The event due at ``time`` does not happen now; the clock stands still there."""
        self._held_since, self.waiting = time, True

    def go(self, now: float) -> None:
        """The event happens; the clock runs on from where it stood."""
        self._delay = now - self.time(now)
        self._held_since = None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"held_since": self._held_since, "delay": self._delay}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._held_since, self._delay = state["held_since"], state["delay"]
