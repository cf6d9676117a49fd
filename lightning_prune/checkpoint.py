"""Loading of pruned networks."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_prune.coupling import named_tensors
from lightning_prune.manifest import (
    manifest_of,
    set_saved_attributes,
    set_saved_buffers,
    set_shapes,
    track_plan,
    track_shapes,
)
from lightning_prune.plan import Plan

_Module = TypeVar("_Module", bound=nn.Module)


def reshape_to(module: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Shrink ``module`` to the shapes of ``state_dict``, which was saved from a pruned copy of the same network.

    Raises:
        ValueError: If a tensor of the file cannot have been pruned from the module's.
    """
    shapes = {}
    for name, tensor in named_tensors(module):
        if name in state_dict:
            found, own = tuple(state_dict[name].shape), tuple(tensor.shape)
            if len(found) != len(own) or any(f > o for f, o in zip(found, own, strict=True)):
                raise ValueError(
                    f"{name!r} is {found} in the file and {own} in {type(module).__name__}: the file was not pruned "
                    "from this network. Build it with the arguments it was trained with."
                )
            shapes[name] = state_dict[name].shape
    set_shapes(module, shapes)


def load_pruned(model: type[_Module] | _Module, path: str | Path, **kwargs: Any) -> _Module:
    """Load a pruned network: its original class, the pruned shapes, and the weights.

    Args:
        model: A LightningModule class, built from the hyperparameters in the checkpoint and ``kwargs``; or a network
            built as it was before pruning, which is then changed in place.
        path: A Lightning checkpoint, or a file with a state dict. It is read with ``weights_only=True``.
        **kwargs: For a LightningModule class: what its ``load_from_checkpoint`` takes (``map_location``, ``strict``,
            arguments of ``__init__``).

    Returns:
        The network. A checkpoint of a LightningModule also loads into the network inside it.

    Raises:
        ValueError: If the file was not pruned from this network.
        TypeError: If ``model`` is a class without ``load_from_checkpoint``, or an instance and ``kwargs`` are given.
    """
    if isinstance(model, nn.Module):
        if kwargs:
            raise TypeError(
                f"load_pruned takes {sorted(kwargs)} only with a LightningModule class, not with an instance"
            )
        content = torch.load(path, map_location="cpu", weights_only=True)
        content = content.get("state_dict", content)
        prefix = _prefix_of(model, content)
        state_dict = {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
        manifest = manifest_of(content)
        attributes = _inside(prefix, manifest.get("attributes", {}))
        buffers = {n.removeprefix(prefix): v for n, v in manifest.get("buffers", {}).items() if n.startswith(prefix)}
        track_shapes(model)
        track_plan(model, Plan({name: {} for name in buffers}, attributes=attributes))
        shrinks = any(state_dict[n].shape != t.shape for n, t in named_tensors(model) if n in state_dict)
        if shrinks and not manifest:
            warnings.warn(
                f"{str(path)!r} says nothing about integers that modules keep about their sizes, such as a number of "
                "heads: if pruning has changed any, the loaded network is wrong. Save model.state_dict() with "
                "torch.save, which keeps them.",
                stacklevel=2,
            )
        reshape_to(model, state_dict)
        set_saved_attributes(model, attributes)
        set_saved_buffers(model, buffers)
        model.load_state_dict(state_dict)
        return model
    load = getattr(model, "load_from_checkpoint", None)
    if load is None:
        raise TypeError(f"{model.__name__} has no load_from_checkpoint; build it and pass the instance to load_pruned")
    if "weights_only" in inspect.signature(load).parameters:
        kwargs.setdefault("weights_only", True)
    with _shrinking_before_load(model):
        loaded: _Module = load(path, **kwargs)
    return loaded


@contextmanager
def _shrinking_before_load(cls: type[nn.Module]) -> Iterator[None]:
    """Let instances of ``cls`` take over the shapes of what they load, for as long as the context lasts."""
    own = cls.__dict__.get("load_state_dict")
    load = cls.load_state_dict

    def load_state_dict(self: nn.Module, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        track_shapes(self)
        reshape_to(self, state_dict)
        return load(self, state_dict, *args, **kwargs)

    cls.load_state_dict = load_state_dict  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        if own is None:
            del cls.load_state_dict
        else:
            cls.load_state_dict = own  # type: ignore[method-assign]


def _prefix_of(module: nn.Module, state_dict: Mapping[str, Tensor]) -> str:
    """What the names of ``module`` begin with in ``state_dict``, where it was saved as a child of another module."""
    names = list(module.state_dict())
    if not names or names[0] in state_dict:
        return ""
    for key in state_dict:
        if key.endswith("." + names[0]):
            prefix = key.removesuffix(names[0])
            if all(prefix + name in state_dict for name in names):
                return prefix
    return ""


def _inside(prefix: str, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Those of the saved attributes that belong to a network that was saved under ``prefix``, by its own names."""
    own = {path: (path + ".").removeprefix(prefix).removesuffix(".") for path in attributes}
    return {own[path]: values for path, values in attributes.items() if (path + ".").startswith(prefix)}
