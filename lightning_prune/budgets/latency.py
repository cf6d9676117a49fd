"""Latency: a target for the measured time of a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lightning_prune.budgets.budget import Budget, BudgetError
from lightning_prune.budgets.search import fewest, largest_within
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.latency_table import Conditions
from lightning_prune.network.argument_checks import check_flag, check_integer, check_number, check_share

_TOLERANCE = 0.05  # accepted relative distance below the target, where the widths allow it


@dataclass(frozen=True)
class Latency(Budget):
    """Measured latency of a forward pass, in milliseconds or as a share of the dense network.

    When training starts, copies of the network are timed at eleven widths in eval mode, which gives a table of the
    latency of each layer. Every event chooses its widths by the table, then times a copy with these widths, alternating
    with the network before the event, and corrects the choice by the result, until the latency is at most the target
    and, where the widths allow it, at most 5 % below. During the schedule the target is interpolated from the latency
    of the dense network. An event takes a few seconds, the table about ten.

    Latencies refer to the state of the machine when training started, independently of its later load. Eager PyTorch is
    timed, without compilation, in the dtype of the parameters and with the threads of this process. With several
    processes, the first one measures for all, and all have to take part. Checkpoints contain the table, and a resumed
    training continues with it, also on another machine.

    Args:
        ms: Median latency of a pass in milliseconds, above 0. Exactly one of ``ms`` and ``keep`` must be given.
        keep: Share of the latency of the dense network that is kept, in [0, 1].
        batch: Number of examples in a pass, at least 1.
        device: Device for the measurement, such as ``"cpu"``; that of the network by default.
        per_layer: Whether every group loses the same share of its units, instead of the lowest-ranked units of all
            groups.

    Raises:
        ValueError: If an argument is out of range, or not exactly one of ``ms`` and ``keep`` is given.

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
        check_flag(self, "per_layer", self.per_layer)
        if (self.ms is None) == (self.keep is None):
            raise ValueError(
                f"Latency ms={self.ms!r}, keep={self.keep!r}: give exactly one of them, such as ms=5 or keep=0.5"
            )
        if self.ms is not None:
            check_number(self, "ms", self.ms, above=0, hint="in milliseconds, such as 5")
        if self.keep is not None:
            check_share(self, "keep", self.keep)
        check_integer(self, "batch", self.batch, minimum=1)
        if self.device is not None:
            try:
                torch.device(self.device)
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"Latency device={self.device!r} is not a device; use one such as 'cpu' or 'cuda:0'"
                ) from error

    @property
    def conditions(self) -> tuple[Conditions, ...]:  # type: ignore[override]
        """Its batch size and device."""
        return (Conditions(self.batch, self.device),)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The fewest removals after which the latency is at most the target."""
        (conditions,) = self.conditions
        dense = space.tables[conditions].dense_ms
        target = dense - (dense - self._goal(dense)) * fraction
        if fraction == 0 or target >= dense:
            return space.now
        floor, floor_measured = space.estimated_ms(space.floor, conditions), False

        def estimated(kept: Mapping[str, int]) -> float:
            return space.estimated_ms(kept, conditions)

        def measured(kept: Mapping[str, int]) -> float:
            nonlocal floor, floor_measured
            ms = space.measured_ms(kept, conditions)
            if kept == space.floor:
                floor, floor_measured = ms, True
            return ms

        def widths(aim: float) -> Mapping[str, int]:
            if estimated(space.floor) <= aim:
                return fewest(self.per_layer, space, estimated, aim)
            if floor_measured or floor > target:
                raise BudgetError(
                    f"{self} cannot be met: with the fewest channels in every group a pass takes {floor:.4g} ms, the "
                    f"dense network {dense:.4g} ms. Widen the scope{self._lower(space)} or increase the target."
                )
            return space.floor

        return largest_within(widths, measured, target, _TOLERANCE)

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """Check by the table, which all ranks share; also refuse a latency that the dense network does not exceed."""
        dense = space.tables[self.conditions[0]].dense_ms
        if self.ms is not None and dense <= self.ms and space.now == space.dense_units:
            raise BudgetError(f"{self} is met already: a pass of the dense network takes {dense:.4g} ms")
        self.keep_units(space, 1.0)

    def _goal(self, dense: float) -> float:
        return dense * self.keep if self.keep is not None else self.ms or 0.0

    def _lower(self, space: ChannelSpace) -> str:
        return f", lower {' and '.join(space.limits)}" if space.limits else ""
