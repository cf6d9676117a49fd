"""The network shrinks until a pass is fast enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import torch

from lightning_prune.budgets.budget import Budget, BudgetError, check_flag, check_share
from lightning_prune.budgets.search import fewest, largest_within
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.latency_table import Conditions

_TOLERANCE = 0.05  # what an event may stay below its latency, where channels are fine enough


@dataclass(frozen=True)
class Latency(Budget):
    """A forward pass is no slower than so many milliseconds, measured.

    When training begins, copies of the network are timed at eleven widths in eval mode, and how long each layer takes
    goes into a table. Every event chooses its widths by the table, then times a copy that has these widths, in turns
    with the network as it is, and corrects the choice by what it finds, until that is at most the target, and at most
    5 % less where the widths allow it. On the way the latency is interpolated from the dense network. An event takes
    some seconds, the table about ten.

    Milliseconds are those of the machine as it was when training began, whatever else it does later. What is timed is
    PyTorch as it is, not compiled, in the dtype of the parameters, with the threads of this process. Of several
    processes the first measures for all; all have to take part. A checkpoint keeps the table, and a resumed training
    goes on with it, on another machine, too.

    Args:
        ms: Median milliseconds of a pass, above 0. Exactly one of ``ms`` and ``keep`` is given.
        keep: Share of the latency of the dense network that is kept, in [0, 1].
        batch: Examples in a pass, at least 1.
        device: Where to measure, such as ``"cpu"``; where the network is by default.
        per_layer: Whether every group gives the same share of its units.

    Example:
        >>> from torch import nn
        >>> from lightning_prune import prune_once
        >>> net = nn.Sequential(nn.Linear(256, 2048), nn.ReLU(), nn.Linear(2048, 256))
        >>> report = prune_once(net, torch.zeros(1, 256), budget=Latency(keep=0.7, batch=64))
        >>> net[0].out_features < 2048
        True
    """

    ms: float | None = None
    keep: float | None = None
    batch: int = 1
    device: str | None = None
    per_layer: bool = False

    def __post_init__(self) -> None:
        check_flag(self)
        ms = self.ms
        if (ms is None) == (self.keep is None):
            raise ValueError(f"Latency ms={ms!r}, keep={self.keep!r}: give one of them, such as ms=5 or keep=0.5")
        if ms is not None and (isinstance(ms, bool) or not isinstance(ms, (int, float)) or not isfinite(ms) or ms <= 0):
            raise ValueError(f"Latency ms={ms!r} must be a positive number of milliseconds, such as 5")
        if self.keep is not None:
            check_share(self, "keep", self.keep)
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise ValueError(f"Latency batch={self.batch!r} must be a whole number of at least 1")
        if self.device is not None:
            try:
                torch.device(self.device)
            except (RuntimeError, TypeError) as error:
                raise ValueError(f"Latency device={self.device!r} is no device; 'cpu' and 'cuda:0' are") from error

    @property
    def conditions(self) -> tuple[Conditions, ...]:  # type: ignore[override]
        """Its batch and device."""
        return (Conditions(self.batch, self.device),)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The fewest removals after which a pass is fast enough."""
        (conditions,) = self.conditions
        dense = space.tables[conditions].dense_ms
        target = dense - (dense - self._goal(dense)) * fraction
        if fraction == 0 or target >= dense:
            return space.now
        floor, floor_seen = space.foreseen_ms(space.floor, conditions), False

        def foreseen(kept: Mapping[str, int]) -> float:
            return space.foreseen_ms(kept, conditions)

        def measured(kept: Mapping[str, int]) -> float:
            nonlocal floor, floor_seen
            ms = space.measured_ms(kept, conditions)
            if kept == space.floor:
                floor, floor_seen = ms, True
            return ms

        def widths(aim: float) -> Mapping[str, int]:
            if foreseen(space.floor) <= aim:
                return fewest(self.per_layer, space, foreseen, aim)
            if floor_seen or floor > target:
                raise BudgetError(
                    f"{self} cannot be met: with the fewest channels left everywhere, a pass takes {floor:.4g} ms, of "
                    f"{dense:.4g} ms when dense. Widen the scope{self._lower(space)} or ask for less."
                )
            return space.floor

        return largest_within(widths, measured, target, _TOLERANCE)

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """By the table, which is the same on all ranks; also refuse a latency that the network has already."""
        dense = space.tables[self.conditions[0]].dense_ms
        if self.ms is not None and dense <= self.ms and space.now == space.dense_units:
            raise BudgetError(f"{self} is met already: a pass of the dense network takes {dense:.4g} ms")
        self.keep_units(space, 1.0)

    def _goal(self, dense: float) -> float:
        return dense * self.keep if self.keep is not None else self.ms or 0.0

    def _lower(self, space: ChannelSpace) -> str:
        return f", lower {' and '.join(space.limits)}" if space.limits else ""
