"""Random criterion, the baseline of all others."""

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
    """Uniformly distributed random scores in [0, 1), the same on every rank and after a resume.

    Scores have the shape of the weight, (units,) or (blocks,); ``Channels(aggregate=...)`` has no effect.

    Args:
        seed: Seed of the draws. They depend on it, on the number of the event and on the name of the group, parameter
            or block alone.

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
        """One draw for each unit; shape (units,)."""
        return self._draw(group.name, (group.size,), scoring.event)

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """One draw for each weight, of its shape."""
        return self._draw(name, tuple(scoring.tensors[name].shape), scoring.event)

    def score_blocks(self, names: Sequence[str], scoring: Scoring) -> Tensor:
        """One draw for each block; shape (blocks,)."""
        return torch.cat([self._draw(name, (1,), scoring.event) for name in names])

    def _draw(self, name: str, shape: tuple[int, ...], event: int) -> Tensor:
        seed = zlib.crc32(f"{self.seed}/{event}/{name}".encode())
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
