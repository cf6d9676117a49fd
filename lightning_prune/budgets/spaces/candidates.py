"""What shrinks step by step: a group by itself, or a bundle of groups as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor, gcd, lcm

import torch
from torch import Tensor

from lightning_prune.coupling.groups import Coupling


@dataclass(frozen=True)
class Candidate:
    """Groups that lose their lowest-scored units in step.

    Attributes:
        quantum: Group name -> units that it gives up with every step.
        now: Steps that it has; every group has ``quantum`` times as many units.
        least: Fewest steps that may stay, before rounding.
        stride: Steps kept are a multiple of this, where it has as many.
    """

    quantum: Mapping[str, int]
    now: int
    least: int
    stride: int

    @classmethod
    def of(
        cls, coupling: Coupling, quantum: Mapping[str, int], now: Mapping[str, int], round_to: int, min_width: int
    ) -> Candidate:
        """The groups in ``quantum``, each with ``now`` units, of which ``round_to`` and ``min_width`` count channels.

        Raises:
            ValueError: If the groups do not have the same number of steps.
        """
        sizes = {name: now[name] for name in quantum}
        steps = min(sizes[name] // units for name, units in quantum.items())
        if sizes != {name: steps * units for name, units in quantum.items()}:
            raise ValueError(f"groups of {sizes} units cannot give {dict(quantum)} of them with every step")
        least, stride = 1, 1
        for name, units in quantum.items():
            group = coupling.groups[name]
            fewest = max(group.min_units, ceil(min_width / group.channels_per_unit))
            least = max(least, ceil(fewest / units))
            stride = lcm(stride, round_to // gcd(round_to, units * group.channels_per_unit))
        return cls(quantum, steps, least, stride)

    @property
    def bundled(self) -> bool:
        """Whether it is more than one group with one unit a step."""
        return sum(self.quantum.values()) > 1

    @property
    def floor(self) -> int:
        """Fewest steps that it can keep."""
        return self.nearest(0)

    @property
    def jump(self) -> int:
        """The most steps that it loses from one width it may have to the next."""
        return min(self.stride, self.now - self.floor)

    def nearest(self, steps: float) -> int:
        """The nearest number of steps that may stay; halves stay."""
        return self._allowed(floor(steps / self.stride + 0.5))

    def no_fewer(self, steps: float) -> int:
        """The nearest number of steps that may stay, ``steps`` or more."""
        return self._allowed(ceil(steps / self.stride))

    def _allowed(self, strides: int) -> int:
        return min(self.stride * max(strides, ceil(self.least / self.stride)), self.now)

    def step_scores(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Scores of the steps, the lowest first, shape (now,).

        The m-th step takes the m-th lowest ``quantum`` units of each group: the mean of their scores, then the mean
        over the groups, so that a wide group weighs no more than a narrow one.
        """
        chunks = [torch.sort(scores[name].double()).values.reshape(self.now, -1).mean(1) for name in self.quantum]
        return torch.stack(chunks).mean(0)
