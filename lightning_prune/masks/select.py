"""Selection of unstructured masks: the lowest-scored weights are masked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

_CHUNK = 2**18  # weights per chunk on a CPU: intermediate results fit into its cache
_CHUNK_CUDA = 2**22  # large enough for an efficient kernel launch, small compared with a large network
_HALVES = 2**16  # number of values of half of the bits of a float32


def lowest_masks(
    scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], counts: Mapping[str, int] | int
) -> dict[str, Tensor]:
    """Masks of the lowest-scored weights; weights that are already masked stay masked.

    Of equal scores, the weight of the first parameter is masked, then the first weight. One weight always survives in
    every parameter.

    Scores are neither sorted nor concatenated: passes over them count bit patterns and so find the exact threshold, as
    in a radix select. Each pass reads ``scores`` once for every parameter. A mapping that computes scores on access,
    the same ones every time, needs memory for one parameter at a time.

    Args:
        scores: Parameter name -> finite float32 scores of its shape.
        masks: Parameter name -> present bool mask, True where the weight survives; may lack parameters.
        counts: Number of masked weights, in all parameters together or by parameter name.

    Returns:
        Parameter name -> bool mask of its shape, True where the weight survives.
    """
    if isinstance(counts, int):
        return _mask_lowest(scores, list(scores), masks, counts)
    return {name: _mask_lowest(scores, [name], masks, counts[name])[name] for name in scores}


@torch.no_grad()
def _mask_lowest(
    scores: Mapping[str, Tensor], names: list[str], masks: Mapping[str, Tensor], count: int
) -> dict[str, Tensor]:
    """The masks of ``names``, with ``count`` masked weights in total."""
    free: dict[str, Tensor] = {}  # True where a weight may be masked; at the end, where it survives
    survivors: dict[str, int] = {}
    uppers = torch.zeros(_HALVES, dtype=torch.int64)
    for name in names:
        free[name], survivor, found = _count_first(scores[name], masks.get(name))
        if survivor is not None:
            survivors[name] = survivor
        uppers += found
    count -= sum(mask.numel() for mask in free.values()) - len(survivors) - int(uppers.sum())
    if count > 0 and bool(uppers.any()):
        upper, rank = _at_rank(_in_order(uppers), count)
        high = upper - _HALVES // 2 if upper >= _HALVES // 2 else -1 - upper  # two's complement of the bits
        lowers = torch.zeros(_HALVES, dtype=torch.int64)
        for name in names:
            lowers += _count_lowers(scores[name], free[name], high)
        lower, ties = _at_rank(lowers if high >= 0 else lowers.flip(0), rank)
        threshold = _float_of(high, lower if high >= 0 else _HALVES - 1 - lower)
        for name in names:
            ties -= _mask_up_to(threshold, ties, scores[name], free[name])
    for name, survivor in survivors.items():
        free[name].view(-1)[survivor] = True
    return free


def _count_first(values: Tensor, mask: Tensor | None) -> tuple[Tensor, int | None, Tensor]:
    """Where weights may be masked, the index that must survive (None if all are masked), and the upper counts."""
    free = torch.ones(values.shape, dtype=torch.bool, device=values.device)
    if mask is not None:
        free.copy_(mask)
    survivor = None
    if bool(free.any()):
        survivor = int(values.argmax())
        if not bool(free.view(-1)[survivor]):
            survivor = int(values.masked_fill(~free, -torch.inf).argmax())
        free.view(-1)[survivor] = False
    return free, survivor, _count_uppers(values, free)


def _count_uppers(values: Tensor, free: Tensor) -> Tensor:
    """Numbers of free weights by the upper half of their bits: int64 on the CPU, indexed by the half + 2**15."""
    counts = torch.zeros(_HALVES, dtype=torch.int64, device=values.device)
    for bits, chunk in _bits(values, free):
        halves = bits.bitwise_right_shift_(16).add_(_HALVES // 2)
        counts += torch.bincount(
            halves.mul_(chunk.view(torch.uint8)), minlength=_HALVES
        )  # indexing by the mask takes longer
    counts[0] -= free.numel() - torch.count_nonzero(free)
    return counts.cpu()


def _count_lowers(values: Tensor, free: Tensor, high: int) -> Tensor:
    """Numbers of free weights with the upper half ``high`` by the lower half of their bits: int64 on the CPU."""
    counts = torch.zeros(_HALVES, dtype=torch.int64, device=values.device)
    for bits, chunk in _bits(values, free):
        candidates = bits[(bits >> 16 == high) & chunk]
        counts += torch.bincount(candidates & (_HALVES - 1), minlength=_HALVES)
    return counts.cpu()


def _mask_up_to(threshold: float, ties: int, values: Tensor, free: Tensor) -> int:
    """Mask free weights below the threshold and the first ``ties`` at it; returns the number of masked ties."""
    masked = 0
    for part, chunk in _chunks(values, free):
        chunk &= part >= threshold
        if masked < ties:
            tied = torch.nonzero((part == threshold) & chunk).flatten()[: ties - masked]
            chunk[tied] = False
            masked += len(tied)
    return masked


def _in_order(uppers: Tensor) -> Tensor:
    """Counts by the upper half in ascending order of values; negative floats have descending bit patterns."""
    return torch.cat([uppers[: _HALVES // 2].flip(0), uppers[_HALVES // 2 :]])


def _at_rank(counts: Tensor, rank: int) -> tuple[int, int]:
    """Index of the bin with the value of this rank, from 1 (the last if there are fewer), and the rank in this bin."""
    up_to = counts.cumsum(0)
    rank = min(rank, int(up_to[-1]))
    index = int(torch.searchsorted(up_to, rank))
    return index, rank - int(up_to[index] - counts[index])


def _float_of(high: int, low: int) -> float:
    return torch.tensor(high * _HALVES + low, dtype=torch.int32).view(torch.float32).item()


def _bits(values: Tensor, free: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for part, chunk in _chunks(values, free):
        yield (part + 0.0).view(torch.int32), chunk  # -0.0 becomes 0.0


def _chunks(values: Tensor, free: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of the values in order, with views of the same chunks of ``free``."""
    size = _CHUNK if values.device.type == "cpu" else _CHUNK_CUDA
    parts = values.detach().flatten().float().split(size)
    return zip(parts, free.view(-1).split(size), strict=True)


def pack(masks: Mapping[str, Tensor]) -> dict[str, dict[str, object]]:
    """Pack masks into bits, eight per byte, for a checkpoint: name -> ``bits`` and ``shape``."""
    return {
        name: {"bits": torch.from_numpy(np.packbits(mask.cpu().numpy().ravel())), "shape": list(mask.shape)}
        for name, mask in masks.items()
    }


def unpack(state: Mapping[str, Mapping[str, object]]) -> dict[str, Tensor]:
    """Unpack the masks that ``pack`` returned.

    Example:
        >>> mask = {"w": torch.tensor([[True, False, True]])}
        >>> unpack(pack(mask))["w"].equal(mask["w"])
        True
    """
    masks = {}
    for name, entry in state.items():
        shape, bits = entry["shape"], entry["bits"]
        assert isinstance(shape, list)
        assert isinstance(bits, Tensor)
        flat = np.unpackbits(bits.numpy(), count=int(np.prod(shape)))
        masks[name] = torch.from_numpy(flat.astype(bool)).reshape(shape)
    return masks
