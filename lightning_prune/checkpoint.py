"""Pruned shapes in checkpoints: written beside the weights, restored before they are loaded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_prune.coupling import named_tensors, sync_attributes, sync_changed
from lightning_prune.coupling.tensors import named_modules
from lightning_prune.surgery import replace_data

_KEY = "lightning_prune"  # in `state_dict._metadata`, which checkpoints with weights alone keep as well
_Module = TypeVar("_Module", bound=nn.Module)


def track_shapes(module: nn.Module) -> None:
    """Let ``module`` write its dense shapes into its state dicts, and take over pruned shapes when loading one.

    A tensor of a loaded state dict may differ in shape only if the file says that it was pruned from the shape that
    the module was built with; any other difference is the usual error of ``load_state_dict``. Tracking again adds the
    tensors that the module has been given since.
    """
    writer = _writer(module)
    dense = _Dense({}, {}) if writer is None else writer.dense
    dense.note_shapes(module)
    if writer is None:
        module._register_state_dict_hook(_ManifestWriter(dense))
        module.register_load_state_dict_pre_hook(_ShapeLoader(dense))


def track_attributes(module: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Let a tracked module also write what becomes of these attributes (module name -> attribute -> anything).

    To be called before they change.
    """
    writer = _writer(module)
    if writer is not None:
        writer.dense.note_attributes(module, attributes)


def is_pruned(module: nn.Module) -> bool:
    """Whether a tracked module has tensors of other shapes than it was built with."""
    writer = _writer(module)
    return writer is not None and bool(writer.pruned(module))


def manifest_of(state_dict: Any) -> tuple[dict[str, list[int]], dict[str, dict[str, Any]]]:
    """What a state dict says was pruned: dense shapes by tensor name, and changed attributes by module name."""
    manifest = getattr(state_dict, "_metadata", {}).get(_KEY, {})
    return manifest.get("dense_shapes", {}), manifest.get("attributes", {})


def _writer(module: nn.Module) -> _ManifestWriter | None:
    return next((hook for hook in module._state_dict_hooks.values() if isinstance(hook, _ManifestWriter)), None)


@dataclass(frozen=True)
class _Dense:
    """What a module was built with.

    Attributes:
        shapes: Tensor name -> shape.
        attributes: (module name, attribute) -> value, for the attributes that pruning has changed at some time.
    """

    shapes: dict[str, list[int]]
    attributes: dict[tuple[str, str], Any]

    def note_shapes(self, module: nn.Module) -> None:
        for path, owner in named_modules(module):  # what was pruned by itself before
            inner = _writer(owner) if path else None
            if inner is not None:
                for name, shape in inner.dense.shapes.items():
                    self.shapes.setdefault(f"{path}.{name}", shape)
                for (below, name), value in inner.dense.attributes.items():
                    self.attributes.setdefault((f"{path}.{below}".rstrip("."), name), value)
        for name, tensor in named_tensors(module):
            self.shapes.setdefault(name, list(tensor.shape))

    def note_attributes(self, module: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
        for path, values in attributes.items():
            for name in values:
                self.attributes.setdefault((path, name), getattr(module.get_submodule(path), name))


class _ManifestWriter:
    """State dict hook: which tensors are smaller than they were built, how large they were, and changed attributes."""

    def __init__(self, dense: _Dense) -> None:
        self.dense = dense

    def __call__(self, module: nn.Module, state_dict: Any, prefix: str, local_metadata: Any) -> None:
        if not hasattr(state_dict, "_metadata"):
            return
        manifest = state_dict._metadata.setdefault(_KEY, {"version": 1, "dense_shapes": {}, "attributes": {}})
        manifest["dense_shapes"].update({prefix + name: shape for name, shape in self.pruned(module).items()})
        manifest["attributes"].update(
            {(prefix + path).rstrip("."): values for path, values in self.changed(module).items()}
        )

    def pruned(self, module: nn.Module) -> dict[str, list[int]]:
        """Dense shapes of the tensors that have another one now."""
        return {
            name: self.dense.shapes[name]
            for name, tensor in named_tensors(module)
            if name in self.dense.shapes and list(tensor.shape) != self.dense.shapes[name]
        }

    def changed(self, module: nn.Module) -> dict[str, dict[str, Any]]:
        """Values of the attributes that have another one now."""
        found: dict[str, dict[str, Any]] = {}
        for (path, name), dense in self.dense.attributes.items():
            value = getattr(module.get_submodule(path), name)
            if value != dense:
                found.setdefault(path, {})[name] = list(value) if isinstance(value, tuple) else value
        return found


class _ShapeLoader:
    """Load hook: bring the module to the shapes in the file, smaller or larger, before its weights are copied."""

    def __init__(self, dense: _Dense) -> None:
        self.dense = dense

    def __call__(self, module: nn.Module, state_dict: Any, prefix: str, *_: Any) -> None:
        manifest = getattr(state_dict, "_metadata", {}).get(_KEY)
        if prefix or manifest is None:
            return
        self.dense.note_shapes(module)  # networks built in `setup` or `configure_model` come after `track_shapes`
        built = {name: list(shape) for name, shape in manifest["dense_shapes"].items()}
        _reshape(
            module,
            {
                name: state_dict[name].shape
                for name, dense in self.dense.shapes.items()
                if name in state_dict and built.get(name, list(state_dict[name].shape)) == dense
            },
        )
        self._restore_attributes(module, manifest.get("attributes", {}))

    def _restore_attributes(self, module: nn.Module, saved: Mapping[str, Mapping[str, Any]]) -> None:
        self.dense.note_attributes(module, saved)
        due: dict[str, dict[str, Any]] = {}
        for (path, name), dense in self.dense.attributes.items():
            due.setdefault(path, {})[name] = saved.get(path, {}).get(name, dense)
        _set_attributes(module, due)


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
    _reshape(module, shapes)


def _reshape(module: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    changed = set()
    for name, tensor in named_tensors(module):
        shape = shapes.get(name, tensor.shape)
        if shape != tensor.shape and len(shape) == tensor.dim():
            tensor.grad = None
            replace_data(tensor, torch.zeros(shape, dtype=tensor.dtype, device=tensor.device))
            changed.add(id(tensor))
    sync_changed(module, changed)


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
        attributes = _inside(prefix, manifest_of(content)[1])
        track_shapes(model)
        track_attributes(model, attributes)
        reshape_to(model, state_dict)
        _set_attributes(model, attributes)
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


def _set_attributes(module: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    for path, values in attributes.items():
        owner = module.get_submodule(path)
        for name, value in values.items():
            setattr(owner, name, tuple(value) if isinstance(getattr(owner, name), tuple) else value)
        sync_attributes(owner)
