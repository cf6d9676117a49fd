"""Masks of rectangular blocks of weights."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from lightning_prune.masks.n_of_m import WeightLayout

WeightBlock = tuple[
    int | None, int | None
]  # size along the first two dimensions of a weight; None for the whole dimension


def why_indivisible(layout: WeightLayout | None, block: WeightBlock) -> str | None:
    """The reason why a weight with this layout cannot be divided into whole blocks; None if it can."""
    if layout is None:
        return "a vector cannot be divided into blocks"
    for size, side, what in zip((layout.outputs, layout.inputs), block, ("outputs", "inputs"), strict=True):
        if side is not None and size % side:
            return f"its {size} {what} are not a multiple of {side}"
    return None


def weights_per_block(shape: tuple[int, ...], block: WeightBlock) -> int:
    """Number of weights in a block of a tensor of this shape, including kernel positions."""
    rows, columns = _sides(shape, block)
    return rows * columns * prod(shape[2:])


def block_means(values: Tensor, block: WeightBlock) -> Tensor:
    """The mean of each block: (outputs, inputs, ...) -> (blocks of outputs, blocks of inputs).

    Example:
        >>> block_means(torch.tensor([[1.0, 3.0, 5.0, 7.0], [1.0, 3.0, 5.0, 7.0]]), (2, 2))
        tensor([[2., 6.]])
    """
    rows, columns = _sides(values.shape, block)
    matrix = values.float().reshape(*values.shape[:2], -1).mean(-1)
    return matrix.reshape(len(matrix) // rows, rows, -1, columns).mean((1, 3))


def expand_blocks(blocks: Tensor, shape: torch.Size, block: WeightBlock) -> Tensor:
    """Expand one value per block to one value per weight, of shape ``shape``.

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
    """Mask the lowest-scored blocks; masked blocks stay masked, and one block of each parameter survives.

    Args:
        scores: Parameter name -> finite scores of its blocks. Of equal scores, the first block is masked.
        alive: Parameter name -> bool, True for the blocks that survive so far.
        weights: Parameter name -> number of weights in a block.
        counts: Largest number of masked weights, in all parameters together or by parameter name; whole blocks are
            masked.

    Returns:
        Parameter name -> bool of the shape of its scores, True for the blocks that survive.
    """
    if not isinstance(counts, int):
        return {name: lowest_weight_blocks({name: scores[name]}, alive, weights, counts[name])[name] for name in scores}
    names = list(scores)
    order = {name: scores[name].masked_fill(~alive[name], -torch.inf).flatten() for name in names}
    for name in names:
        if bool(alive[name].any()):
            order[name][order[name].argmax()] = torch.inf
    ranks = torch.cat([order[name] for name in names]).argsort(stable=True)
    cost = torch.cat([torch.full_like(order[name], weights[name], dtype=torch.int64) for name in names])[ranks]
    values = torch.cat([order[name] for name in names])[ranks]
    masked = (values == -torch.inf) | ((cost.cumsum(0) <= counts) & (values < torch.inf))
    kept = torch.ones_like(masked).index_fill_(0, ranks[masked], False)
    parts = kept.split([order[name].numel() for name in names])
    return {name: part.view(scores[name].shape) for name, part in zip(names, parts, strict=True)}


def _sides(shape: tuple[int, ...], block: WeightBlock) -> tuple[int, int]:
    return shape[0] if block[0] is None else block[0], shape[1] if block[1] is None else block[1]
