"""Restore the structure that a checkpoint describes: modules, shapes, attributes and non-persistent buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.network.copies import copy_of
from lightning_prune.network.layer_attributes import sync_attributes, sync_changed_layers
from lightning_prune.network.tensors import named_modules, named_tensors
from lightning_prune.surgery.apply import replace_data


def set_shapes(module: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    """Give tensors of ``module`` new shapes of as many dimensions, filled with zeros."""
    changed = set()
    for name, tensor in named_tensors(module):
        shape = shapes.get(name, tensor.shape)
        if shape != tensor.shape and len(shape) == tensor.dim():
            tensor.grad = None
            replace_data(tensor, torch.zeros(shape, dtype=tensor.dtype, device=tensor.device))
            changed.add(id(tensor))
    sync_changed_layers(module, changed)


def set_saved_attributes(module: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set integer attributes of modules, such as ``num_heads``: module name -> attribute -> value."""
    for path, values in attributes.items():
        owner = module.get_submodule(path)
        for name, value in values.items():
            setattr(owner, name, tuple(value) if isinstance(getattr(owner, name), tuple) else value)
        sync_attributes(owner)


def set_saved_buffers(module: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Set non-persistent buffers: name -> values."""
    own = non_persistent_buffers(module)
    for name, values in buffers.items():
        if name in own:
            replace_data(own[name], values.to(own[name].device, copy=True))


def non_persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that are in no state dict (``persistent=False``), by name."""
    found = {}
    for path, owner in named_modules(module):
        for name in getattr(owner, "_non_persistent_buffers_set", ()):
            values = owner._buffers.get(name)
            if values is not None:
                found[f"{path}.{name}" if path else name] = values
    return found


def submodule(module: nn.Module, name: str) -> nn.Module | None:
    """The submodule with the qualified name ``name``; None where there is none."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def template_of(module: nn.Module) -> nn.Module:
    """A copy of ``module`` whose tensors are on the meta device, except for non-persistent buffers, which are copied.

    Hooks of this package are not copied: they belong to the module that is in the network.
    """
    buffers = {id(values) for values in non_persistent_buffers(module).values()}
    replaced: dict[int, Any] = {}
    for _, tensor in named_tensors(module):
        if id(tensor) not in buffers:
            empty = torch.empty_like(tensor, device="meta", requires_grad=False)
            parameter = isinstance(tensor, nn.Parameter)
            replaced[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if parameter else empty
    template = copy_of(module, replaced)
    for _, owner in named_modules(template):
        for hooks in (owner._forward_hooks, owner._forward_pre_hooks, owner._backward_hooks):
            for key in [key for key, hook in hooks.items() if type(hook).__module__.startswith("lightning_prune.")]:
                del hooks[key]
        for key in [key for key, hook in owner._state_dict_hooks.items() if hasattr(hook, "whole")]:
            del owner._state_dict_hooks[key]
    return template


def restore_module(module: nn.Module, name: str, template: nn.Module) -> None:
    """Replace the identity at ``name`` by a copy of ``template``, on the device of ``module`` and filled with zeros."""
    device = next((tensor.device for _, tensor in named_tensors(module)), torch.device("cpu"))
    block = copy_of(template)
    filled: dict[int, Tensor] = {}
    for _, owner in named_modules(block):
        for tensors in (owner._parameters, owner._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    tensors[key] = filled.setdefault(id(tensor), _filled(tensor, device))  # type: ignore[assignment]
    path, _, key = name.rpartition(".")
    children = module.get_submodule(path)._modules
    identity = children[key]
    children[key] = block.train(identity is None or identity.training)


def _filled(tensor: Tensor, device: torch.device) -> Tensor:
    values = torch.zeros_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device, copy=True)
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values
