"""Sizes of a network and its layers, as logged metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

_OUTPUTS = ("out_channels", "out_features", "embedding_dim", "hidden_size")


@dataclass(frozen=True)
class LayerSize:
    """Size of a module with weights of two or more dimensions.

    Attributes:
        width: Number of output channels or features.
        weights: Number of weights, without biases and other vectors.
        nonzero: Number of weights that are not exactly zero.
    """

    width: int
    weights: int
    nonzero: int


def layer_metrics(model: nn.Module) -> dict[str, LayerSize]:
    """Layer sizes of ``model`` by qualified name, in its order.

    Example:
        >>> layer_metrics(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))["0"].width
        3
    """
    layers = {}
    for name, module in model.named_modules():
        weights = _weights(module)
        if weights:
            width = next((getattr(module, a) for a in _OUTPUTS if isinstance(getattr(module, a, None), int)), None)
            layers[name or type(module).__name__] = LayerSize(
                width=weights[0].shape[0] if width is None else width,
                weights=sum(weight.numel() for weight in weights),
                nonzero=sum(_nonzero(weight) for weight in weights),
            )
    return layers


def original_weights(model: nn.Module) -> dict[str, int]:
    """Layer name -> number of weights; taken from the dense network, as the reference of ``size_metrics``."""
    return {name: layer.weights for name, layer in layer_metrics(model).items()}


def size_metrics(model: nn.Module, original: Mapping[str, int], macs: int | None) -> dict[str, float]:
    """Metric name -> value, for the current ``model``.

    Args:
        model: The network.
        original: Layer name -> number of weights in the dense network.
        macs: MACs of ``model`` for one example; None if unknown.
    """
    values: dict[str, float] = {
        "pruning/parameters": sum(p.numel() for p in model.parameters()),
        "pruning/nonzero_parameters": sum(_nonzero(p) for p in model.parameters()),
    }
    if macs is not None:
        values["pruning/macs"] = macs
    for name, layer in layer_metrics(model).items():
        values[f"width/{name}"] = layer.width
        values[f"sparsity/{name}"] = 1 - layer.nonzero / original.get(name, layer.weights)
    return values


def _weights(module: nn.Module) -> list[nn.Parameter]:
    own = module.named_parameters(recurse=False)
    return [parameter for name, parameter in own if "weight" in name and parameter.dim() > 1]


def _nonzero(parameter: nn.Parameter) -> int:
    return int(torch.count_nonzero(parameter.detach()))
