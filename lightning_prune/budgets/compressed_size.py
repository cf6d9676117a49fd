"""FileSize: a target for the size of the compressed state dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.budgets.budget import Budget, BudgetError
from lightning_prune.budgets.search import fewest, largest_within, masked
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace
from lightning_prune.file_size import compressed_size, deflated, estimated_size, overhead
from lightning_prune.network.argument_checks import check_flag, check_number
from lightning_prune.network.sharded import full_tensor
from lightning_prune.surgery.preview import masked_copy

_BYTES_PER_MB = 10**6
_TOLERANCE = 0.005  # accepted relative distance below the target, where the widths allow it
_SAMPLE = 2**18  # number of weights that are compressed for each share
_SHARES = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 1)


@dataclass(frozen=True)
class FileSize(Budget):
    """Size of the compressed state dict, in megabytes.

    The file is written by ``lightning_prune.file_size.write_compressed``: ``torch.save`` with deflate at level 6.
    Floating-point weights hardly compress, masked weights need almost no space. Every event estimates the size from
    samples, then compresses the result, once or a few times, until it is at most the target and, where the widths allow
    it, at most 0.5 % below. This takes about one second for 15 MB. The record of what was pruned, which ``load_pruned``
    reads, adds one or two kilobytes.

    Training after the last event changes how well the weights compress. Measured over nine epochs on small networks,
    the size changed by −0.3 % to +0.2 % with ``Channels()`` and by +2 % with ``Weights()``. For a hard limit, choose a
    smaller size.

    Args:
        mb: Size in megabytes of 10⁶ bytes, above 0.
        per_layer: Whether every layer loses the same share, instead of the lowest-ranked weights or units of all
            layers.

    Raises:
        ValueError: If an argument is out of range.
    """

    mb: float
    per_layer: bool = False
    masks = True
    needs_scores = True

    def __post_init__(self) -> None:
        check_flag(self, "per_layer", self.per_layer)
        check_number(self, "mb", self.mb, above=0, hint="in megabytes, such as 25")

    def keep_units(self, space: ChannelSpace, fraction: float) -> Mapping[str, int]:
        """The fewest removals after which the file is at most the target."""
        cost = _cost_of_channels(space)
        target = self._target(cost(space.dense.params), fraction)
        if target is None:
            return space.now

        def widths(aim: float) -> Mapping[str, int]:
            self._check_reachable(cost(space.params(space.floor)), aim, "channels")
            return fewest(self.per_layer, space, lambda kept: cost(space.params(kept)), aim)

        return largest_within(widths, lambda kept: compressed_size(space.state(space.lowest(kept))), target, _TOLERANCE)

    def check_units(self, space: ChannelSpace, events: int | None) -> None:
        """Also refuse a size that the dense network does not exceed."""
        if space.now == space.dense_units:
            self._check_needed(_cost_of_channels(space)(space.dense.params))
        self.keep_units(space, 1.0)

    def mask_weights(self, space: WeightSpace, fraction: float) -> Mapping[str, int] | int:
        """The fewest masked weights with which the file is at most the target."""
        sizes = _sizes_by_share(space)
        target = self._target(sizes[0], fraction)
        if target is None:
            return space.masked

        def counts(aim: float) -> Mapping[str, int] | int:
            return masked(self, space, self._share(space, sizes, aim))

        def measured(counts: Mapping[str, int] | int) -> int:
            return compressed_size(space.state(space.lowest(counts)))

        return largest_within(counts, measured, target, _TOLERANCE)

    def check_weights(self, space: WeightSpace, events: int | None) -> None:
        """Check the estimate only, because scores are not known yet."""
        sizes = _sizes_by_share(space)
        if not any(space.masked.values()):
            self._check_needed(sizes[0])
        self._share(space, sizes, self.mb * _BYTES_PER_MB)

    def _target(self, dense: float, fraction: float) -> float | None:
        """Target in bytes; None if nothing has to be removed."""
        wanted = dense - (dense - self.mb * _BYTES_PER_MB) * fraction
        return wanted if fraction > 0 and wanted < dense else None

    def _share(self, space: WeightSpace, sizes: np.ndarray, aim: float) -> float:
        """The share of weights to mask for a file of ``aim`` bytes, interpolated between ``_SHARES``."""
        most = 1 - 1 / max(space.sizes.values()) if self.per_layer else space.maskable / sum(space.sizes.values())
        self._check_reachable(float(np.interp(most, _SHARES, sizes)), aim, "weights")
        return min(most, float(np.interp(-aim, -sizes, _SHARES)))

    def _check_reachable(self, least: float, aim: float, what: str) -> None:
        if least > aim:
            raise BudgetError(
                f"{self} cannot be met: with the fewest {what} in every layer the file has "
                f"{least / _BYTES_PER_MB:.4g} MB. Widen the scope or increase the target."
            )

    def _check_needed(self, dense: float) -> None:
        if dense <= self.mb * _BYTES_PER_MB:
            raise BudgetError(
                f"{self} is met already: the file of the dense network has {dense / _BYTES_PER_MB:.4g} MB"
            )


def _cost_of_channels(space: ChannelSpace) -> Callable[[float], float]:
    """File size in bytes as a function of the number of parameters, at their present compression ratio."""
    state = space.state({})
    fixed, values = overhead(state), estimated_size(_tensors(state).values())
    now = space.params(space.now)
    return lambda params: fixed + values * params / now


def _sizes_by_share(space: WeightSpace) -> np.ndarray:
    """File size in bytes for each of ``_SHARES`` of weights masked at random positions; decreasing."""
    state = space.state({})
    others = estimated_size(v for name, v in _tensors(state).items() if name not in space.sizes)
    total = sum(space.sizes.values())
    samples = []
    for name, size in space.sizes.items():
        values = full_tensor(state[name].detach()).flatten()
        if name in space.masks:
            values = values[space.masks[name].to(values.device).flatten()]
        samples.append(values[: -(-_SAMPLE * size // total)].cpu())
    sampled = sum(len(sample) for sample in samples)
    draws = [torch.rand(len(sample), generator=torch.Generator().manual_seed(n)) for n, sample in enumerate(samples)]
    sizes = []
    for share in _SHARES:
        masked_samples = [masked_copy(sample, draw >= share) for sample, draw in zip(samples, draws, strict=True)]
        sizes.append(overhead(state) + others + sum(len(deflated(part)) for part in masked_samples) * total / sampled)
    return np.minimum.accumulate(np.array(sizes))


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors in ``state``; shared tensors once."""
    first = {id(value): name for name, value in reversed(list(state.items())) if isinstance(value, Tensor)}
    return {name: state[name] for name in first.values()}
