"""Masks of whole blocks of weights."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from lightning_prune.masks.n_of_m import WeightLayout

WeightBlock = tuple[int | None, int | None]  # along the first two dimensions of a weight; None for all of one


def why_indivisible(layout: WeightLayout | None, block: WeightBlock) -> str | None:
    """Why a weight with this layout has no whole blocks; None if it has."""
    if layout is None:
        return "a vector has no blocks"
    for size, side, what in zip((layout.outputs, layout.inputs), block, ("outputs", "inputs"), strict=True):
        if side is not None and size % side:
            return f"its {size} {what} are no multiple of {side}"
    return None


def weights_per_block(shape: tuple[int, ...], block: WeightBlock) -> int:
    """How many weights a block of a tensor of this shape has, kernels included."""
    rows, columns = _sides(shape, block)
    return rows * columns * prod(shape[2:])


def block_means(values: Tensor, block: WeightBlock) -> Tensor:
    """The mean of each block: (outputs, inputs, ...) -> (blocks down, blocks across).

    Example:
        >>> block_means(torch.tensor([[1.0, 3.0, 5.0, 7.0], [1.0, 3.0, 5.0, 7.0]]), (2, 2))
        tensor([[2., 6.]])
    """
    rows, columns = _sides(values.shape, block)
    matrix = values.float().reshape(*values.shape[:2], -1).mean(-1)
    return matrix.reshape(len(matrix) // rows, rows, -1, columns).mean((1, 3))


def expand_blocks(blocks: Tensor, shape: torch.Size, block: WeightBlock) -> Tensor:
    """A value for each weight from one for each block.

    Example:
        >>> expand_blocks(torch.tensor([[True, False]]), torch.Size([1, 4]), (1, 2))
        tensor([[ True,  True, False, False]])
    """
    rows, columns = _sides(shape, block)
    matrix = blocks.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return matrix.reshape(*shape[:2], *[1] * (len(shape) - 2)).expand(shape).contiguous()


def lowest_weight_blocks(
    scores: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    weights: Mapping[str, int],
    counts: Mapping[str, int] | int,
) -> dict[str, Tensor]:
    """The blocks that survive when the lowest go; what is gone stays gone, and one block of each parameter survives.

    Args:
        scores: Parameter name -> a finite score for each block. Of equal ones the first goes.
        alive: Parameter name -> bool, True for the blocks that have survived so far.
        weights: Parameter name -> number of weights in a block.
        counts: How many weights are masked in all, or by parameter, at most: whole blocks go.
    """
    if not isinstance(counts, int):
        apart = {
            name: lowest_weight_blocks({name: scores[name]}, alive, weights, counts[name])[name] for name in scores
        }
        return apart
    names = list(scores)
    order = {name: scores[name].masked_fill(~alive[name], -torch.inf).flatten() for name in names}
    for name in names:
        if bool(alive[name].any()):
            order[name][order[name].argmax()] = torch.inf
    ranks = torch.cat([order[name] for name in names]).argsort(stable=True)
    cost = torch.cat([torch.full_like(order[name], weights[name], dtype=torch.int64) for name in names])[ranks]
    values = torch.cat([order[name] for name in names])[ranks]
    gone = (values == -torch.inf) | ((cost.cumsum(0) <= counts) & (values < torch.inf))
    kept = torch.ones_like(gone).index_fill_(0, ranks[gone], False)
    parts = kept.split([order[name].numel() for name in names])
    return {name: part.view(scores[name].shape) for name, part in zip(names, parts, strict=True)}


def _sides(shape: tuple[int, ...], block: WeightBlock) -> tuple[int, int]:
    return shape[0] if block[0] is None else block[0], shape[1] if block[1] is None else block[1]
