"""Granularity: what is removed, whole channels or single weights."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass


class Granularity(ABC):  # noqa: B024  (a marker: what a pruner makes of it is decided by its class)
    """Base of all granularities."""


@dataclass(frozen=True)
class Channels(Granularity):
    """Channels are physically removed; the network gets smaller and faster.

    Args:
        round_to: Every group keeps a multiple of this many channels (hardware likes 8 or 16), rounded to the nearest,
            at least one multiple; a group with fewer channels stays as it is.

    Raises:
        ValueError: If ``round_to`` is below 1.
    """

    round_to: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.round_to, bool) or not isinstance(self.round_to, int) or self.round_to < 1:
            raise ValueError(f"Channels round_to={self.round_to!r} must be a whole number of at least 1")


@dataclass(frozen=True)
class Weights(Granularity):
    """Single weights are masked with zeros; the shapes stay."""
