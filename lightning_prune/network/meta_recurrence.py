"""Runs each recurrent layer on the meta device as one operation.

ATen decomposes a recurrent layer on the meta device into a dozen operations for every layer, direction and time step: a
pass over a thousand steps would take minutes. The operation behind cuDNN has the same weights and result shapes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_prune.network.tensors import named_modules

_MODES = {"rnn_relu": 0, "rnn_tanh": 1, "lstm": 2, "gru": 3}  # as cuDNN numbers them
_GATES = {"lstm": 4, "gru": 3}


def fused_recurrence(module: nn.Module) -> AbstractContextManager[Any]:
    """The context for forward passes of ``module``; it has no effect without recurrent layers."""
    recurrent = any(isinstance(layer, nn.RNNBase) for _, layer in named_modules(module))
    return FusedRecurrence() if recurrent else nullcontext()


class FusedRecurrence(TorchFunctionMode):
    """Function mode that runs ``lstm``, ``gru``, ``rnn_tanh`` and ``rnn_relu`` on meta tensors as one operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``."""
        name = getattr(func, "__name__", "")
        if name in _MODES and not kwargs and len(args) == 9 and args[0].is_meta and isinstance(args[2], (list, tuple)):
            found = _fused(name, *args)
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))


def _fused(
    name: str, source: Tensor, state: Any, weights: Any, biased: bool, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, ...] | None:  # fmt: skip
    """The results of a recurrent layer; None where ``aten::_cudnn_rnn`` does not support it."""
    hidden, cell = state if name == "lstm" else (state, None)
    width, stride = hidden.shape[-1], 4 if biased else 2
    directions = 2 if bidirectional else 1
    if len(weights) != stride * layers * directions or (cell is not None and cell.shape != hidden.shape):
        return None  # a projection
    if hidden.dim() != 3 or source.dim() != 3:
        return None
    rows = _GATES.get(name, 1) * width
    for number in range(layers * directions):
        read = source.shape[-1] if number < directions else directions * width
        sizes = [(rows, read), (rows, width), (rows,), (rows,)][:stride]
        if [tuple(weight.shape) for weight in weights[stride * number : stride * (number + 1)]] != sizes:
            return None  # PyTorch raises the error
    output, last, last_cell, *_ = torch.ops.aten._cudnn_rnn(
        source, list(weights), stride, None, hidden, cell, _MODES[name], width, 0, layers, batch_first, dropout, train,
        bidirectional, [], None,
    )  # fmt: skip
    return (output, last, last_cell) if name == "lstm" else (output, last)
