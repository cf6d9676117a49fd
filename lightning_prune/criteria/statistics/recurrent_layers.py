"""Outputs of recurrent layers and cells, reduced to one row per example and one column per hidden unit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

PerExample = Callable[[Tensor], Tensor]


def sequence_in(output: Any) -> Tensor:
    """The first output of a recurrent layer or cell: hidden states with units last, without padding if packed."""
    while isinstance(output, tuple):
        output = output[0]
    found: Tensor = output
    return found


def parts_of(layer: nn.Module, output: Any) -> list[tuple[Tensor, PerExample]]:
    """The tensors that a recurrent layer or cell returns, each with a function that averages over time steps.

    Every function maps values of the shape of its tensor to (examples, columns of the output), so that the results can
    be added. Layers and both kinds of states are summed. Examples are in the order of the packed sequence.
    """
    if isinstance(layer, nn.RNNCellBase):
        tensors = output if isinstance(output, tuple) else (output,)
        return [(tensor, partial(_rows, columns=tensor.shape[-1])) for tensor in tensors]
    assert isinstance(layer, nn.RNNBase)
    sequence, states = output
    columns = sequence_in(output).shape[-1]
    order, steps = None, Tensor()
    if isinstance(sequence, PackedSequence):
        owners = torch.cat([torch.arange(int(size)) for size in sequence.batch_sizes])
        order, steps = sequence.sorted_indices, owners.bincount()[:, None]
        first: tuple[Tensor, PerExample] = sequence.data, partial(_by_owner, owners=owners, steps=steps)
    else:
        dim = 1 if layer.batch_first and sequence.dim() == 3 else 0
        steps = torch.tensor(sequence.shape[dim])
        first = sequence, partial(_mean, dim=dim, columns=columns)
    last = partial(_states, columns=columns, order=order, steps=steps)
    return [first, *((tensor, last) for tensor in (states if isinstance(states, tuple) else (states,)))]


def _rows(values: Tensor, columns: int) -> Tensor:
    return values.reshape(-1, columns)


def _mean(values: Tensor, dim: int, columns: int) -> Tensor:
    return _rows(values.mean(dim), columns)


def _by_owner(values: Tensor, owners: Tensor, steps: Tensor) -> Tensor:
    """The mean over the packed rows of each example."""
    sums = values.new_zeros(len(steps), values.shape[-1]).index_add_(0, owners.to(values.device), values)
    return sums / steps.to(values.device)


def _states(values: Tensor, columns: int, order: Tensor | None, steps: Tensor) -> Tensor:
    """Last states, (layers times directions, examples, units) -> (examples, directions times units), over the steps."""
    width = values.shape[-1]
    sums = values.reshape(-1, columns // width, values[0].numel() // width, width).sum(0)
    if order is not None:
        sums = sums.index_select(1, order)
    return sums.movedim(0, 1).flatten(1) / steps.to(values.device)
