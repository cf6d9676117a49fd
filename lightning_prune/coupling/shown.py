"""Layers of PyTorch that make channels inside, where no output of a layer shows them as it is."""

from __future__ import annotations

from torch import nn


def is_recurrent(layer: nn.Module) -> bool:
    """Whether ``layer`` is a recurrent layer or cell of PyTorch: hidden units are the last dimension of its outputs."""
    return isinstance(layer, (nn.RNNBase, nn.RNNCellBase))


def projects_in_one(layer: nn.Module) -> bool:
    """Whether ``layer`` is PyTorch's attention with one weight for queries, keys and values."""
    return (
        isinstance(layer, nn.MultiheadAttention)
        and type(layer).forward is nn.MultiheadAttention.forward
        and isinstance(layer.in_proj_weight, nn.Parameter)
    )
