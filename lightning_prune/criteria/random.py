"""The baseline that every criterion has to beat."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.criterion import Criterion, Scoring
from lightning_prune.network.argument_checks import check_integer


@dataclass(frozen=True)
class Random(Criterion):
    """Uniform scores in [0, 1), the same on every rank and after a resume.

    One scale for all groups by definition; there is nothing in the coupled tensors to aggregate.

    Args:
        seed: Draws depend on it, on the event and on the name of the group, parameter or block, and on nothing else.

    Raises:
        ValueError: If ``seed`` is not an integer.
    """

    seed: int = 0

    scores_channels = True
    scores_weights = True
    scores_blocks = True

    def __post_init__(self) -> None:
        check_integer(self, "seed", self.seed)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """One draw for each unit."""
        return self._draw(group.name, (group.size,), scoring.event)

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """One draw for each weight."""
        return self._draw(name, tuple(scoring.tensors[name].shape), scoring.event)

    def score_blocks(self, names: Sequence[str], scoring: Scoring) -> Tensor:
        """One draw for each block."""
        return torch.cat([self._draw(name, (1,), scoring.event) for name in names])

    def _draw(self, name: str, shape: tuple[int, ...], event: int) -> Tensor:
        seed = zlib.crc32(f"{self.seed}/{event}/{name}".encode())
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
