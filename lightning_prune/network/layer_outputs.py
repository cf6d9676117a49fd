"""Where the outputs of PyTorch's layers hold their channels."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)


def channel_dim(layer: nn.Module) -> int | None:
    """Channel dimension of the output of a linear layer or convolution, from the end; None for other layers."""
    if isinstance(layer, nn.Linear):
        return -1
    return -1 - len(layer.kernel_size) if isinstance(layer, _ConvNd) else None


def is_recurrent(layer: nn.Module) -> bool:
    """Whether ``layer`` is a recurrent layer or cell without projection: its outputs end with the hidden units."""
    own = isinstance(layer, _RECURRENT) and any(type(layer).forward is kind.forward for kind in _RECURRENT)
    return own and not getattr(layer, "proj_size", 0)


def has_packed_projection(layer: nn.Module) -> bool:
    """Whether ``layer`` is PyTorch's attention with one weight for queries, keys and values."""
    return (
        isinstance(layer, nn.MultiheadAttention)
        and type(layer).forward is nn.MultiheadAttention.forward
        and isinstance(layer.in_proj_weight, nn.Parameter)
    )
