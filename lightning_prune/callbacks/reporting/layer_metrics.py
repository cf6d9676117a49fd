"""The numbers behind the curves: what a network has, in all and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

_OUTPUTS = ("out_channels", "out_features", "embedding_dim", "hidden_size")


@dataclass(frozen=True)
class LayerSize:
    """A module with weights of two or more dimensions.

    Attributes:
        width: Channels or features of its output.
        weights: Number of its weights; biases and other vectors do not count.
        nonzero: How many of them are not exactly zero.
    """

    width: int
    weights: int
    nonzero: int


def layer_metrics(model: nn.Module) -> dict[str, LayerSize]:
    """The layers of ``model`` by qualified name, in its own order.

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
    """Layer name -> number of weights: the reference of ``curves``, taken from the dense network."""
    return {name: layer.weights for name, layer in layer_metrics(model).items()}


def curves(model: nn.Module, original: Mapping[str, int], macs: int | None) -> dict[str, float]:
    """Metric name -> value for ``model`` as it is.

    Args:
        model: The network.
        original: Layer name -> number of weights in the dense network.
        macs: What ``model`` costs for one example, None where that is not known.
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
