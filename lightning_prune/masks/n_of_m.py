"""N:M sparsity masks: N of every M consecutive weights along the input dimension survive."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True)
class WeightLayout:
    """Input and output dimensions of a weight.

    Attributes:
        inputs: Number of inputs of each output; per group in grouped convolutions.
        outputs: Number of outputs; per group in grouped convolutions.
        dim: Dimension of the inputs: 1, or 0 in transposed convolutions.
    """

    inputs: int
    outputs: int
    dim: int = 1


def weight_layouts(module: nn.Module) -> dict[str, WeightLayout]:
    """The layouts of all parameters with two or more dimensions, by name."""
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
    """Mask that keeps the ``keep`` highest scores of every block; weights that are already masked stay masked.

    Args:
        scores: Scores of the shape of the weights. A block is ``m`` neighbors along ``dim``: inputs of one output at
            one position of the kernel, as sparse tensor cores read them.
        mask: Present bool mask, True where the weight survives; None if all do.
        m: Number of weights in a block; has to divide the size of ``dim``.
        keep: Number of weights that survive in a block; of equal scores the first.
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
    """Largest number of surviving weights in a block of ``m``, including an incomplete last block."""
    along = mask.movedim(dim, -1)
    return max(int(part.sum(-1).max()) for part in along.split(m, dim=-1))


def kept_in_block(n: int, m: int, fraction: float) -> int:
    """Number of weights that a block keeps at ``fraction`` of a schedule: ``m`` at 0, ``n`` at 1.

    Example:
        >>> [kept_in_block(2, 4, fraction) for fraction in (0.0, 0.3, 0.6, 1.0)]
        [4, 3, 3, 2]
    """
    return m - round((m - n) * fraction)
