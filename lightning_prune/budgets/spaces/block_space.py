"""Block space: the blocks that a budget can remove, lowest score first, with their costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_prune.budgets.spaces.dense_reference import DenseReference


@dataclass(frozen=True)
class BlockSpace:
    """Blocks that a budget can remove, lowest score first, with their costs.

    Attributes:
        dense: The dense network; ``dense.units`` holds the blocks that it had.
        params_now: Number of parameters of the network as it is.
        macs_now: Multiply-accumulates for one example of the network as it is.
        params: Number of parameters of each block.
        macs: Multiply-accumulates of each block.
        removed: Number of blocks removed by earlier events.
    """

    dense: DenseReference
    params_now: int
    macs_now: int
    params: Sequence[int]
    macs: Sequence[int]
    removed: int = 0

    def __len__(self) -> int:
        """Number of blocks that can be removed."""
        return len(self.params)

    def params_after(self, count: int) -> int:
        """Number of parameters once the first ``count`` blocks are removed."""
        return self.params_now - sum(self.params[:count])

    def macs_after(self, count: int) -> int:
        """Multiply-accumulates for one example once the first ``count`` blocks are removed."""
        return self.macs_now - sum(self.macs[:count])
