"""N:M sparsity: in every block of M weights along the input dimension, N survive."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True)
class WeightLayout:
    """How a weight lies in memory.

    Attributes:
        inputs: Inputs of an output; of a group in grouped convolutions.
        outputs: Outputs; of a group in grouped convolutions.
        dim: Dimension of the inputs: 1, in transposed convolutions 0.
    """

    inputs: int
    outputs: int
    dim: int = 1


def weight_layouts(module: nn.Module) -> dict[str, WeightLayout]:
    """The layout of every parameter of two or more dimensions, by name."""
    convolutions = {id(below.weight): below for below in module.modules() if isinstance(below, _ConvNd)}
    found = {}
    for name, parameter in module.named_parameters():
        layer = convolutions.get(id(parameter))
        groups = 1 if layer is None else layer.groups
        if parameter.dim() > 1 and isinstance(layer, _ConvTransposeNd):
            found[name] = WeightLayout(parameter.shape[0] // groups, parameter.shape[1], 0)
        elif parameter.dim() > 1:
            found[name] = WeightLayout(parameter.shape[1], parameter.shape[0] // groups)
    return found


@torch.no_grad()
def nm_mask(scores: Tensor, mask: Tensor | None, m: int, keep: int, dim: int = 1) -> Tensor:
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
        >>> nm_mask(torch.tensor([[4.0, 1.0, 3.0, 2.0], [0.0, 0.0, 5.0, 0.0]]), None, m=4, keep=2).int()
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
