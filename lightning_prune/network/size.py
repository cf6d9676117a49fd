"""The size of a network: parameters and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune.network.example_input import Example, run_on_copy
from lightning_prune.network.sharded import full_tensor


@dataclass(frozen=True)
class Size:
    """The size of a network.

    Attributes:
        params: Number of parameters.
        nonzero: Number of parameters that are not exactly zero.
        macs: Multiply-accumulates of the forward pass of one example in eval mode; None without an example input.
    """

    params: int
    nonzero: int
    macs: int | None


def measure(model: nn.Module, example: Example | None) -> Size:
    """Count parameters and multiply-accumulates.

    MACs are those of convolutions and matrix products, attention included, as PyTorch's ``FlopCounterMode`` counts them
    without the fused attention path; elementwise operations are not counted.

    Example:
        >>> size = measure(nn.Linear(10, 3), Example.of(torch.zeros(1, 10)))
        >>> size.params, size.macs
        (33, 30)
    """
    return Size(
        params=sum(p.numel() for p in model.parameters()),
        nonzero=sum(int(torch.count_nonzero(full_tensor(p.detach()))) for p in model.parameters()),
        macs=None if example is None else count_macs(model, example),
    )


def count_macs(model: nn.Module, example: Example) -> int:
    """Multiply-accumulates of the forward pass of one example in eval mode."""

    def count(copy: nn.Module, inputs: Example) -> int:
        counter = FlopCounterMode(display=False)
        with counter:
            inputs.run(copy.eval())
        return round(counter.get_total_flops() / 2 / inputs.batch)

    macs: int = run_on_copy(model, example, count)
    return macs


def nonzero_in(tensors: Iterable[Tensor]) -> int:
    """Number of nonzero entries in ``tensors``."""
    return sum(int(torch.count_nonzero(tensor)) for tensor in tensors)
