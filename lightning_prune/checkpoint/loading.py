"""Loading of pruned networks."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_prune.checkpoint.manifest import (
    manifest_in,
    manifest_of,
    set_removed_modules,
    track_plan,
    track_shapes,
    with_manifest,
)
from lightning_prune.checkpoint.restore import set_saved_attributes, set_saved_buffers, set_shapes
from lightning_prune.network.names import is_inside
from lightning_prune.network.tensors import named_tensors
from lightning_prune.surgery.plan import Plan

_Module = TypeVar("_Module", bound=nn.Module)

_LOADING = "lightning_prune.callbacks.loading"
BUILDERS = {  # what Lightning builds the module of a checkpoint with -> what builds one that can load pruned weights
    None: f"{_LOADING}.build_as_load_pruned",
    "lightning.pytorch.cli.instantiate_module": f"{_LOADING}.build_from_cli_as_load_pruned",
    "pytorch_lightning.cli.instantiate_module": f"{_LOADING}.build_from_cli_as_load_pruned",
}


def trust_builders() -> None:
    """Tell Lightning, where it is imported and wants to know, that checkpoints may name these builders.

    Without it, ``load_from_checkpoint`` of a pruned checkpoint fails with an error that says whom to trust.
    """
    for lightning in ("lightning.pytorch", "pytorch_lightning"):
        trusted: set[str] = getattr(sys.modules.get(f"{lightning}.core.saving"), "_ALLOWED_INSTANTIATORS", set())
        trusted.update(BUILDERS.values())


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
        TypeError: If ``model`` is neither a network nor a class with ``load_from_checkpoint``, or an instance and
            ``kwargs`` are given.
    """
    if isinstance(model, nn.Module):
        if kwargs:
            raise TypeError(
                f"load_pruned takes {sorted(kwargs)} only with a LightningModule class, not with an instance"
            )
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        content = checkpoint.get("state_dict", checkpoint)
        manifest = manifest_of(content) or manifest_in(checkpoint)
        prefix = _prefix_of(model, content, manifest.get("skipped", {}))
        state_dict = {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
        attributes = _inside(prefix, manifest.get("attributes", {}))
        buffers = {n.removeprefix(prefix): v for n, v in manifest.get("buffers", {}).items() if n.startswith(prefix)}
        track_shapes(model)
        set_removed_modules(
            model, [n.removeprefix(prefix) for n in manifest.get("skipped", {}) if n.startswith(prefix)]
        )
        track_plan(model, Plan({name: {} for name in buffers}, attributes=attributes))
        shrinks = any(state_dict[n].shape != t.shape for n, t in named_tensors(model) if n in state_dict)
        if shrinks and not manifest:
            warnings.warn(
                f"{str(path)!r} says nothing about integers that modules keep about their sizes, such as a number of "
                "heads: if pruning has changed any, the loaded network is wrong. Save the state_dict() of the "
                "LightningModule or of its network with torch.save, as it is: a new dict of its tensors loses them.",
                stacklevel=2,
            )
        reshape_to(model, state_dict)
        set_saved_attributes(model, attributes)
        set_saved_buffers(model, buffers)
        model.load_state_dict(state_dict)
        return model
    if not isinstance(model, type):
        raise TypeError(f"load_pruned takes the network or its class first, then the path; got {model!r} for a network")
    load = getattr(model, "load_from_checkpoint", None)
    if load is None:
        raise TypeError(f"{model.__name__} has no load_from_checkpoint; build it and pass the instance to load_pruned")
    if "weights_only" in inspect.signature(load).parameters:
        kwargs.setdefault("weights_only", True)
    trust_builders()
    with _shrinking_before_load(model):
        loaded: _Module = load(path, **kwargs)
    return loaded


def load_other_size(module: nn.Module, path: str | Path) -> None:
    """Load a Lightning checkpoint of the same module, pruned more or less than ``module`` is, or not at all."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    track_shapes(module)
    manifest = manifest_in(checkpoint) or {"dense_shapes": {}, "attributes": {}, "buffers": {}, "skipped": {}}
    module.load_state_dict(with_manifest(checkpoint["state_dict"], manifest))


@contextmanager
def _shrinking_before_load(cls: type[nn.Module]) -> Iterator[None]:
    """Let instances of ``cls`` take over the shapes of what they load, for as long as the context lasts."""
    load, notice = cls.load_state_dict, getattr(cls, "on_load_checkpoint", None)
    checkpoint: dict[str, Any] = {}

    def on_load_checkpoint(self: nn.Module, content: dict[str, Any]) -> None:
        checkpoint.update(content)
        if notice is not None:
            notice(self, content)

    def load_state_dict(self: nn.Module, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        track_shapes(self)
        reshape_to(self, state_dict)
        return load(self, with_manifest(state_dict, manifest_in(checkpoint)), *args, **kwargs)

    with (
        _replaced(cls, "on_load_checkpoint", on_load_checkpoint),
        _replaced(cls, "load_state_dict", load_state_dict),
    ):
        yield


@contextmanager
def _replaced(cls: type[nn.Module], name: str, method: Callable[..., Any]) -> Iterator[None]:
    own = cls.__dict__.get(name)
    setattr(cls, name, method)
    try:
        yield
    finally:
        if own is None:
            delattr(cls, name)
        else:
            setattr(cls, name, own)


def _prefix_of(module: nn.Module, state_dict: Mapping[str, Tensor], removed: Collection[str]) -> str:
    """What the names of ``module`` begin with in ``state_dict``, where it was saved as a child of another module.

    What lies in ``removed`` modules of that one may be missing.
    """
    names = list(module.state_dict())
    prefixes = (key.removesuffix(name) for name in names for key in state_dict if key.endswith(f".{name}"))
    for prefix in chain([""], prefixes):
        if all(prefix + name in state_dict or is_inside(prefix + name, removed) for name in names):
            return prefix
    return ""


def _inside(prefix: str, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Those of the saved attributes that belong to a network that was saved under ``prefix``, by its own names."""
    own = {path: (path + ".").removeprefix(prefix).removesuffix(".") for path in attributes}
    return {own[path]: values for path, values in attributes.items() if (path + ".").startswith(prefix)}
