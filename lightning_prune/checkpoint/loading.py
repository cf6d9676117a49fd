"""Loading of pruned networks from checkpoints and state dicts."""

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
BUILDERS = {  # function with which Lightning builds the module of a checkpoint -> one whose module loads pruned weights
    None: f"{_LOADING}.build_as_load_pruned",
    "lightning.pytorch.cli.instantiate_module": f"{_LOADING}.build_from_cli_as_load_pruned",
    "pytorch_lightning.cli.instantiate_module": f"{_LOADING}.build_from_cli_as_load_pruned",
}


def trust_builders() -> None:
    """Add ``BUILDERS`` to the functions that Lightning allows in checkpoints, if Lightning is imported.

    Without it, ``load_from_checkpoint`` of a pruned checkpoint fails with an error about an untrusted function.
    """
    for lightning in ("lightning.pytorch", "pytorch_lightning"):
        trusted: set[str] = getattr(sys.modules.get(f"{lightning}.core.saving"), "_ALLOWED_INSTANTIATORS", set())
        trusted.update(BUILDERS.values())


def reshape_to(module: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Shrink ``module`` to the shapes in ``state_dict``, which was saved from a pruned copy of the same network.

    Raises:
        ValueError: If a tensor of the file is larger than that of the module, or has other dimensions.
    """
    shapes = {}
    for name, tensor in named_tensors(module):
        if name in state_dict:
            saved, own = tuple(state_dict[name].shape), tuple(tensor.shape)
            if len(saved) != len(own) or any(s > o for s, o in zip(saved, own, strict=True)):
                raise ValueError(
                    f"{name!r} is {saved} in the file and {own} in {type(module).__name__}: the file was not pruned "
                    "from this network. Build it with the arguments it was trained with."
                )
            shapes[name] = state_dict[name].shape
    set_shapes(module, shapes)


def load_pruned(model: type[_Module] | _Module, path: str | Path, **kwargs: Any) -> _Module:
    """Load a pruned network: its original class, the pruned shapes, and the weights.

    Args:
        model: A LightningModule class, which is instantiated with the hyperparameters of the checkpoint and ``kwargs``;
            or a network with the shapes it had before pruning, which is changed in place.
        path: A Lightning checkpoint, or a file with a state dict. It is read with ``weights_only=True``.
        **kwargs: For a LightningModule class: arguments of its ``load_from_checkpoint``, such as ``map_location`` and
            ``strict``, and of its ``__init__``.

    Returns:
        The pruned network with the weights of the file. A checkpoint of a LightningModule can also be loaded into the
        network that is an attribute of this module.

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
                f"{str(path)!r} has no manifest of integers that modules keep about their sizes, such as num_heads: "
                "if pruning has changed any, the loaded network is wrong. Save the unchanged state_dict() of the "
                "LightningModule or of its network with torch.save; a new dict of its tensors loses the manifest.",
                stacklevel=2,
            )
        reshape_to(model, state_dict)
        set_saved_attributes(model, attributes)
        set_saved_buffers(model, buffers)
        model.load_state_dict(state_dict)
        return model
    if not isinstance(model, type):
        raise TypeError(f"load_pruned takes a network or its class, then the path; model={model!r} is neither")
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
    """Load a Lightning checkpoint of the same module, which may be pruned more, less or not at all."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    track_shapes(module)
    manifest = manifest_in(checkpoint) or {"dense_shapes": {}, "attributes": {}, "buffers": {}, "skipped": {}}
    module.load_state_dict(with_manifest(checkpoint["state_dict"], manifest))


@contextmanager
def _shrinking_before_load(cls: type[nn.Module]) -> Iterator[None]:
    """A context in which instances of ``cls`` take over the shapes of the state dicts that they load."""
    load, hook = cls.load_state_dict, getattr(cls, "on_load_checkpoint", None)
    checkpoint: dict[str, Any] = {}

    def on_load_checkpoint(self: nn.Module, content: dict[str, Any]) -> None:
        checkpoint.update(content)
        if hook is not None:
            hook(self, content)

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
    """Prefix of the names of ``module`` in ``state_dict``, which may have been saved from its parent module.

    Tensors in ``removed`` modules of the parent may be missing.
    """
    names = list(module.state_dict())
    prefixes = (key.removesuffix(name) for name in names for key in state_dict if key.endswith(f".{name}"))
    for prefix in chain([""], prefixes):
        if all(prefix + name in state_dict or is_inside(prefix + name, removed) for name in names):
            return prefix
    return ""


def _inside(prefix: str, attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The saved attributes of the submodule with the name prefix ``prefix``, by module names without the prefix."""
    own = {path: (path + ".").removeprefix(prefix).removesuffix(".") for path in attributes}
    return {own[path]: values for path, values in attributes.items() if (path + ".").startswith(prefix)}
