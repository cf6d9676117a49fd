"""Putting a module into the state that a checkpoint describes: shapes, attributes, buffers that no state dict has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.coupling import named_tensors, sync_attributes, sync_changed
from lightning_prune.coupling.tensors import named_modules
from lightning_prune.surgery import replace_data


def set_shapes(module: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    """Give tensors of ``module`` other shapes, filled with zeros."""
    changed = set()
    for name, tensor in named_tensors(module):
        shape = shapes.get(name, tensor.shape)
        if shape != tensor.shape and len(shape) == tensor.dim():
            tensor.grad = None
            replace_data(tensor, torch.zeros(shape, dtype=tensor.dtype, device=tensor.device))
            changed.add(id(tensor))
    sync_changed(module, changed)


def set_saved_attributes(module: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set the integers that modules keep: module name -> attribute -> value."""
    for path, values in attributes.items():
        owner = module.get_submodule(path)
        for name, value in values.items():
            setattr(owner, name, tuple(value) if isinstance(getattr(owner, name), tuple) else value)
        sync_attributes(owner)


def set_saved_buffers(module: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Set buffers that are in no state dict."""
    own = kept_out(module)
    for name, values in buffers.items():
        if name in own:
            replace_data(own[name], values.to(own[name].device, copy=True))


def kept_out(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that are in no state dict (``persistent=False``), by name."""
    found = {}
    for path, owner in named_modules(module):
        for name in getattr(owner, "_non_persistent_buffers_set", ()):
            values = owner._buffers.get(name)
            if values is not None:
                found[f"{path}.{name}" if path else name] = values
    return found
