"""ERK: a sparsity that is distributed over the layers by their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lightning_prune.budgets.budget import Budget, BudgetError
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace
from lightning_prune.network.argument_checks import check_share

_HALVINGS = 100  # bisection steps for the scale: more than the precision of a double


@dataclass(frozen=True)
class ERK(Budget):
    """Sparsity of the weights, distributed over the layers by their shapes (Erdős-Rényi-Kernel).

    The density of a layer is proportional to (n_in + n_out + k_h + k_w) / (n_in · n_out · k_h · k_w): wide layers
    become sparse, narrow layers stay nearly dense. Where the density would exceed 1, the layer stays dense and the
    other layers compensate for it. Mocanu et al. 2018, 'Scalable training of artificial neural networks with adaptive
    sparse connectivity inspired by network science' (without kernels); Evci et al. 2020, 'Rigging the lottery',
    section 3.

    At a fraction of the schedule, the same fraction of the sparsity is distributed; masked weights stay masked.

    Args:
        sparsity: Fraction removed of all weights in the scope, in [0, 1]; met exactly.

    Raises:
        ValueError: If ``sparsity`` is out of range.
    """

    sparsity: float
    per_layer = True
    units = False
    masks = True

    def __post_init__(self) -> None:
        check_share(self, "sparsity", self.sparsity)

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """Not supported."""
        raise TypeError(f"{self} distributes single weights; with Channels() use Sparsity, Ratio or Ratios")

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int]:
        """Masked weights of every parameter, by its shape."""
        sizes = np.array(list(space.sizes.values()))
        total = int(sizes.sum())
        if round(self.sparsity * total) > space.maskable:
            raise BudgetError(f"{self} keeps no weight in a parameter; use at most {space.maskable / total:.6f}")
        shares = np.array([sum(space.shapes[name]) for name in space.sizes], dtype=float)
        free = sizes - np.array(list(space.masked.values()))
        kept = distributed(total - round(self.sparsity * fraction * total), shares, free)
        return {name: size - int(rest) for (name, size), rest in zip(space.sizes.items(), kept, strict=True)}


def distributed(total: int, shares: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Integers proportional to ``shares``, from 1 to ``most``, whose sum is ``total`` or as near as possible.

    Example:
        >>> distributed(20, np.array([4.0, 2.0, 1.0]), np.array([8, 50, 50]))  # at most 8, the others 2 to 1
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
