"""Sparsity by the shapes of the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lightning_prune.budgets.budget import Budget, BudgetError, check_share
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace

_HALVINGS = 100  # of the interval in which the scale lies: beyond the precision of a double


@dataclass(frozen=True)
class ERK(Budget):
    """The weights reach a sparsity that the layers share by their shapes: Erdős-Rényi-kernel.

    The density of a layer is proportional to (n_in + n_out + k_h + k_w) / (n_in · n_out · k_h · k_w): wide layers
    become sparse, narrow ones stay nearly dense. Layers that would have more weights than they have stay dense, and the
    others make up for it. Mocanu et al. 2018, 'Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science' (without kernels); Evci et al. 2020, 'Rigging the lottery', section 3.

    On the way to the budget the layers share the sparsity of the schedule's fraction; what is masked stays masked.

    Args:
        sparsity: Fraction removed of all weights in the scope, in [0, 1]; met exactly.
    """

    sparsity: float
    per_layer = True
    units = False
    masks = True

    def __post_init__(self) -> None:
        check_share(self, "sparsity", self.sparsity)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """Channels have no such shapes."""
        raise TypeError(f"{self} distributes single weights; with Channels() use Sparsity, Ratio or Ratios")

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int]:
        """The share of every parameter by its shape."""
        sizes = np.array(list(space.sizes.values()))
        total = int(sizes.sum())
        if round(self.sparsity * total) > space.maskable:
            raise BudgetError(f"{self} leaves no weight somewhere; at most {space.maskable / total:.6f} can go")
        shares = np.array([sum(space.shapes[name]) for name in space.sizes], dtype=float)
        free = sizes - np.array(list(space.masked.values()))
        kept = distributed(total - round(self.sparsity * fraction * total), shares, free)
        return {name: size - int(left) for (name, size), left in zip(space.sizes.items(), kept, strict=True)}


def distributed(total: int, shares: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Whole numbers in proportion to ``shares``, from 1 to ``most``, with the sum ``total`` (or as near as can be).

    Example:
        >>> distributed(20, np.array([4.0, 2.0, 1.0]), np.array([8, 50, 50]))  # 8 at most, the rest 2 to 1
        array([8, 8, 4])
    """
    if total >= most.sum():
        return most

    def at(scale: float) -> np.ndarray:
        return np.clip(scale * shares, 1, most)

    low, high = 0.0, float(most.max())  # every share is at least 1, or its parameter has one weight
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).sum() <= total else (low, middle)
    wanted = at(low)
    kept = np.floor(wanted).astype(int)
    missing = max(0, total - int(kept.sum()))
    open_ = np.flatnonzero(kept < most)
    kept[open_[np.argsort(kept[open_] - wanted[open_], kind="stable")[:missing]]] += 1  # largest remainders first
    return kept
