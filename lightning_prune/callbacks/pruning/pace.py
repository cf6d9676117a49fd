"""The schedule's clock, which stands still while an event is held back."""

from __future__ import annotations

from typing import Any


class HeldClock:
    """Turns the time of the training into the time of the schedule."""

    def __init__(self) -> None:
        self._tried: int | None = None  # epoch in which the held event was tried last, until there is a validation
        self._held_since: float | None = None
        self._delay = 0.0

    def time(self, now: float) -> float:
        """The time of the schedule when the training is at ``now``, both in the schedule's unit."""
        return now - self._delay if self._held_since is None else self._held_since

    def hold(self, time: float, epoch: int) -> None:
        """The event due at ``time`` does not happen now, in this epoch; the clock stands still there."""
        self._held_since, self._tried = time, epoch

    def waits(self, epoch: int) -> bool:
        """Whether the held event waits for a validation or the next epoch before it is tried again."""
        return self._tried == epoch

    def try_again(self) -> None:
        """There was a validation."""
        self._tried = None

    def go(self, now: float, time: float) -> None:
        """The event due at ``time`` happens ``now``; the clock runs on from there."""
        self._delay = now - time
        self._held_since = None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"held_since": self._held_since, "delay": self._delay, "tried": self._tried}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        self._held_since, self._delay, self._tried = state["held_since"], state["delay"], state.get("tried")
