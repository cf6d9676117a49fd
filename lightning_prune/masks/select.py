"""Unstructured masks: which weights go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

_CHUNK = 2**18  # weights looked at together on a CPU: what is made of them stays in its cache
_CHUNK_CUDA = 2**22  # large enough for a launch, small beside a network where memory matters
_HALVES = 2**16  # values that half of the bits of a float32 can have


def lowest_masks(
    scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], counts: Mapping[str, int] | int
) -> dict[str, Tensor]:
    """Masks that hide the lowest-scored weights; what is masked already stays masked.

    Ties go to the first parameter, then to the first weight. One weight always survives in every parameter.

    Nothing is sorted or put together: passes over the scores count how many weights have which bits, and so find the
    exact threshold. Each pass asks ``scores`` once for every parameter; where they are made when asked for, the same
    every time, those of one parameter at a time are in memory.

    Args:
        scores: Parameter name -> finite float32 scores of its shape.
        masks: Parameter name -> bool mask so far, True where the weight survives; may lack parameters.
        counts: How many weights are masked in all, or by parameter.
    """
    if isinstance(counts, int):
        return _hide_lowest(scores, list(scores), masks, counts)
    return {name: _hide_lowest(scores, [name], masks, counts[name])[name] for name in scores}


@torch.no_grad()
def _hide_lowest(
    scores: Mapping[str, Tensor], names: list[str], masks: Mapping[str, Tensor], count: int
) -> dict[str, Tensor]:
    """The masks of ``names``, which hide ``count`` weights in all."""
    free: dict[str, Tensor] = {}  # True where a weight may go; in the end, where it survives
    survivors: dict[str, int] = {}
    uppers = torch.zeros(_HALVES, dtype=torch.int64)
    for name in names:
        free[name], survivor, found = _first_look(scores[name], masks.get(name))
        if survivor is not None:
            survivors[name] = survivor
        uppers += found
    count -= sum(mask.numel() for mask in free.values()) - len(survivors) - int(uppers.sum())
    if count > 0 and bool(uppers.any()):
        upper, left = _at_rank(_in_order(uppers), count)
        high = upper - _HALVES // 2 if upper >= _HALVES // 2 else -1 - upper  # as in the bits: two's complement
        lowers = torch.zeros(_HALVES, dtype=torch.int64)
        for name in names:
            lowers += _count_lowers(scores[name], free[name], high)
        lower, left = _at_rank(lowers if high >= 0 else lowers.flip(0), left)
        threshold = _float_of(high, lower if high >= 0 else _HALVES - 1 - lower)
        for name in names:
            left -= _hide_up_to(threshold, left, scores[name], free[name])
    for name, survivor in survivors.items():
        free[name].view(-1)[survivor] = True
    return free


def _first_look(values: Tensor, mask: Tensor | None) -> tuple[Tensor, int | None, Tensor]:
    """Where weights may go, the index of the one that may not (None if all are masked), and the counts of uppers."""
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
    """How many free weights have which upper half of their bits: int64 on the CPU, indexed by the half + 2**15."""
    counts = torch.zeros(_HALVES, dtype=torch.int64, device=values.device)
    for bits, chunk in _bits(values, free):
        halves = bits.bitwise_right_shift_(16).add_(_HALVES // 2)
        counts += torch.bincount(halves.mul_(chunk.view(torch.uint8)), minlength=_HALVES)  # selecting takes longer
    counts[0] -= free.numel() - torch.count_nonzero(free)
    return counts.cpu()


def _count_lowers(values: Tensor, free: Tensor, high: int) -> Tensor:
    """How many free weights whose upper half is ``high`` have which lower half: int64 on the CPU."""
    counts = torch.zeros(_HALVES, dtype=torch.int64, device=values.device)
    for bits, chunk in _bits(values, free):
        candidates = bits[(bits >> 16 == high) & chunk]
        counts += torch.bincount(candidates & (_HALVES - 1), minlength=_HALVES)
    return counts.cpu()


def _hide_up_to(threshold: float, ties: int, values: Tensor, free: Tensor) -> int:
    """Free weights below the threshold go, and the first ``ties`` of those at it; how many of these there were."""
    gone = 0
    for part, chunk in _chunks(values, free):
        chunk &= part >= threshold
        if gone < ties:
            tied = torch.nonzero((part == threshold) & chunk).flatten()[: ties - gone]
            chunk[tied] = False
            gone += len(tied)
    return gone


def _in_order(uppers: Tensor) -> Tensor:
    """Counts by the upper half, lowest value first: the more bits a negative float32 has, the lower it is."""
    return torch.cat([uppers[: _HALVES // 2].flip(0), uppers[_HALVES // 2 :]])


def _at_rank(counts: Tensor, rank: int) -> tuple[int, int]:
    """Index that the value with this rank, from 1, has (the last where there are fewer), and its rank there."""
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
    """Parts of the values in order, and views of the same parts of ``free``."""
    size = _CHUNK if values.device.type == "cpu" else _CHUNK_CUDA
    parts = values.detach().flatten().float().split(size)
    return zip(parts, free.view(-1).split(size), strict=True)


def pack(masks: Mapping[str, Tensor]) -> dict[str, dict[str, object]]:
    """Masks as bits, eight a byte, for a checkpoint."""
    return {
        name: {"bits": torch.from_numpy(np.packbits(mask.cpu().numpy().ravel())), "shape": list(mask.shape)}
        for name, mask in masks.items()
    }


def unpack(state: Mapping[str, Mapping[str, object]]) -> dict[str, Tensor]:
    """The masks that ``pack`` wrote.

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
