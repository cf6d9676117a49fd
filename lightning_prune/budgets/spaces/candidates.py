"""Candidates: groups, or bundles of groups that are pruned together, as sequences of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor, gcd, lcm

import torch
from torch import Tensor

from lightning_prune.coupling.groups import Coupling


@dataclass(frozen=True)
class Candidate:
    """One group, or a bundle of groups that lose their lowest-scored units together, step by step.

    Attributes:
        quantum: Group name -> number of units removed with every step.
        now: Number of steps; every group has ``quantum`` times as many units.
        least: Minimum number of steps kept, before rounding.
        stride: The number of steps kept is a multiple of this, if there are as many.
    """

    quantum: Mapping[str, int]
    now: int
    least: int
    stride: int

    @classmethod
    def of(
        cls, coupling: Coupling, quantum: Mapping[str, int], now: Mapping[str, int], round_to: int, min_width: int
    ) -> Candidate:
        """The candidate of the groups in ``quantum``, with ``now`` units each; the limits count channels.

        Raises:
            ValueError: If the groups do not have the same number of steps.
        """
        sizes = {name: now[name] for name in quantum}
        steps = min(sizes[name] // units for name, units in quantum.items())
        if sizes != {name: steps * units for name, units in quantum.items()}:
            raise ValueError(f"groups of {sizes} units cannot lose {dict(quantum)} units with every step")
        least, stride = 1, 1
        for name, units in quantum.items():
            group = coupling.groups[name]
            fewest = max(group.min_units, ceil(min_width / group.channels_per_unit))
            least = max(least, ceil(fewest / units))
            stride = lcm(stride, round_to // gcd(round_to, units * group.channels_per_unit))
        return cls(quantum, steps, least, stride)

    @property
    def bundled(self) -> bool:
        """Whether a step removes more than one unit."""
        return sum(self.quantum.values()) > 1

    @property
    def floor(self) -> int:
        """Minimum number of steps kept."""
        return self.nearest(0)

    @property
    def jump(self) -> int:
        """Maximum number of steps between two allowed widths."""
        return min(self.stride, self.now - self.floor)

    def nearest(self, steps: float) -> int:
        """The nearest allowed number of steps; halves are rounded up."""
        return self._allowed(floor(steps / self.stride + 0.5))

    def no_fewer(self, steps: float) -> int:
        """The nearest allowed number of steps that is at least ``steps``."""
        return self._allowed(ceil(steps / self.stride))

    def _allowed(self, strides: int) -> int:
        return min(self.stride * max(strides, ceil(self.least / self.stride)), self.now)

    def step_scores(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Scores of the steps, lowest first, shape (now,).

        The m-th step removes the m-th lowest ``quantum`` units of each group. Its score is the mean of their scores,
        averaged over the groups, so that wide and narrow groups have the same weight.
        """
        chunks = [torch.sort(scores[name].double()).values.reshape(self.now, -1).mean(1) for name in self.quantum]
        return torch.stack(chunks).mean(0)
