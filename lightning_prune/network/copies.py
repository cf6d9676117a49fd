"""Copies of a network for trial forward passes."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import cache, partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

from lightning_prune.network.tensors import named_modules, named_tensors, tensors_in

_CONTAINERS = (dict, list, set, OrderedDict)
_PLAIN = (
    type(None),
    bool,
    int,
    float,
    str,
    bytes,
    type,
    torch.dtype,
    torch.Size,
    FunctionType,
    BuiltinFunctionType,
)

_COMPATIBILITY_ONLY = {  # these only add attributes that modules pickled by old versions lack
    owner.__setstate__ for owner in (nn.Module, nn.Conv2d, nn.MultiheadAttention, nn.TransformerEncoderLayer)
}


def copy_of(model: nn.Module, copied: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy of a network that shares partial functions and detaches activations stored in modules.

    LightningCLI passes optimizers to a LightningModule as partials that reference the whole program: its Trainer, its
    data, its processes. Tensors in an autograd graph, such as outputs collected during an epoch, cannot be deep-copied.

    Args:
        model: The network.
        copied: Copies that exist already, by the id of the original.
    """
    made = _copied(model, dict(copied or {}))
    for _, module in named_modules(made):
        vars(module).pop("_compiled_call_impl", None)  # calls the original, like everything compiled
        for name in _compiled_methods(module):
            del vars(module)[name]
    return made


def _compiled_methods(module: nn.Module) -> list[str]:
    """Methods that were compiled individually, as Lightning does: on a copy they would call the original."""
    compiled = [key for key, value in vars(module).items() if hasattr(value, "_torchdynamo_orig_callable")]
    return [key for key in compiled if getattr(type(module), key, None) not in (None, nn.Module.forward)]


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """The result of ``copy.deepcopy``, computed faster: immutable values and empty containers need no memo."""
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[no-any-return]
    if not _is_plain(type(module)):  # type: ignore[arg-type]
        for _, below in named_modules(module):
            for key, value in vars(below).items():
                _share(value if key not in ("_parameters", "_modules") else None, memo)
        return copy.deepcopy(module, memo)
    new = type(module).__new__(type(module))
    memo[id(module)] = new
    own = new.__dict__
    for key, value in vars(module).items():
        if key == "_compiled_call_impl":  # calls the original
            continue
        if type(value) in _PLAIN:
            own[key] = value
            continue
        if key == "_modules":
            value = {name: None if child is None else _copied(child, memo) for name, child in value.items()}
        elif type(value) in _CONTAINERS and not value:
            value = memo.setdefault(id(value), type(value)())
        elif key in ("_parameters", "_buffers"):
            made = {name: memo.get(id(tensor)) for name, tensor in value.items()}
            value = {name: _deep_copy(value[name], memo) if t is None else t for name, t in made.items()}
        elif not _is_shape(value):
            value = _deep_copy(value, memo)
        own[key] = value
    return new


def _deep_copy(value: Any, memo: dict[int, Any]) -> Any:
    _share(value, memo)
    return copy.deepcopy(value, memo)


def _share(value: Any, memo: dict[int, Any]) -> None:
    """Register in ``memo`` that partial functions are shared and that activations in ``value`` are detached."""
    if isinstance(value, partial):
        memo[id(value)] = value
    memo.update({id(tensor): tensor.detach() for tensor in tensors_in(value) if not tensor.is_leaf})


def _is_shape(value: Any) -> bool:
    return type(value) is tuple and all(type(item) in _PLAIN for item in value)


@cache
def _is_plain(cls: type[nn.Module]) -> bool:
    """Whether ``copy.deepcopy`` would copy modules of this class attribute by attribute."""
    methods = ("__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__", "__getstate__", "__new__")
    return (
        not issubclass(cls, torch.jit.ScriptModule)
        and all(getattr(cls, name, None) is getattr(nn.Module, name, None) for name in methods)
        and cls.__setstate__ in _COMPATIBILITY_ONLY
    )


def meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy of a network with parameters and buffers on the meta device, without a copy of their data."""
    memo: dict[int, Any] = {}
    for _, tensor in named_tensors(model):
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy_of(model, memo)
