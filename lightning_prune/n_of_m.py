"""N:M sparsity: in every block of M weights along the input dimension, N survive."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd


def input_dims(module: nn.Module) -> dict[str, int]:
    """Parameter name -> the dimension along which it reads its inputs: 0 for transposed convolutions, else 1."""
    transposed = {id(below.weight) for below in module.modules() if isinstance(below, _ConvTransposeNd)}
    return {name: 0 if id(parameter) in transposed else 1 for name, parameter in module.named_parameters()}


@torch.no_grad()
def block_mask(scores: Tensor, mask: Tensor | None, m: int, keep: int, dim: int = 1) -> Tensor:
    """The mask that keeps the ``keep`` highest scores of every block; what is masked already stays masked.

    Args:
        scores: Of the shape of the weights. A block is ``m`` neighbours along ``dim``: inputs of one output at one
            position of the kernel, as sparse tensor cores read them.
        mask: Bool, True where the weight survives so far.
        m: Weights in a block; divides the size of ``dim``.
        keep: How many survive; of equal scores the first.
        dim: The input dimension.

    Returns:
        A bool mask of the shape of ``scores``.

    Example:
        >>> block_mask(torch.tensor([[4.0, 1.0, 3.0, 2.0], [0.0, 0.0, 5.0, 0.0]]), None, m=4, keep=2).int()
        tensor([[1, 0, 1, 0],
                [1, 0, 1, 0]], dtype=torch.int32)
    """
    values = scores if mask is None else scores.masked_fill(~mask.to(scores.device), -torch.inf)
    along = values.movedim(dim, -1)
    blocks = along.reshape(-1, m)
    best = blocks.argsort(dim=1, descending=True, stable=True)[:, :keep]
    kept = torch.zeros_like(blocks, dtype=torch.bool).scatter_(1, best, True)
    found = kept.view(along.shape).movedim(-1, dim).contiguous()
    return found if mask is None else found & mask.to(found.device)


def fullest_block(mask: Tensor, m: int, dim: int = 1) -> int:
    """The most weights that survive in a block of ``m``; of a last block that is not whole, too."""
    along = mask.movedim(dim, -1)
    return max(int(part.sum(-1).max()) for part in along.split(m, dim=-1))


def kept_in_block(n: int, m: int, fraction: float) -> int:
    """How many weights a block keeps when a schedule is at ``fraction``: ``m`` at 0, ``n`` at 1.

    Example:
        >>> [kept_in_block(2, 4, fraction) for fraction in (0.0, 0.3, 0.6, 1.0)]
        [4, 3, 3, 2]
    """
    return m - round((m - n) * fraction)
