"""State dict hooks: they write the manifest of a pruned module and give a module the shapes of a loaded file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from lightning_prune.checkpoint.as_built import AsBuilt
from lightning_prune.checkpoint.restore import (
    non_persistent_buffers,
    set_saved_attributes,
    set_saved_buffers,
    set_shapes,
    submodule,
)
from lightning_prune.network.tensors import named_tensors

METADATA_KEY = "lightning_prune"  # of the manifest in ``state_dict._metadata``, which weights-only files keep as well


class PartWriter:
    """State dict hook of a direct child of a tracked module: writes the manifest of this child alone."""

    def __init__(self, whole: ManifestWriter, name: str) -> None:
        self.whole, self.name = whole, name

    def __call__(self, module: nn.Module, state_dict: Any, prefix: str, local_metadata: Any) -> None:
        """Write the manifest of the child, whose names have ``prefix`` in ``state_dict``."""
        self.whole.write(module, state_dict, prefix, self.prefix)

    @property
    def prefix(self) -> str:
        """Prefix of the child's names in the tracked module; empty where a copy of the child is tracked by itself."""
        return f"{self.name}." if self.name else ""

    def __deepcopy__(self, memo: dict[int, Any]) -> PartWriter:
        whole = memo.get(id(self.whole))
        if whole is not None:
            return PartWriter(whole, self.name)
        return PartWriter(ManifestWriter(copy.deepcopy(self.whole.as_built.inside(self.prefix))), "")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as a function that does nothing: a pickled network must not need this package."""
        return getattr, (nullcontext(), "__exit__")


class ManifestWriter:
    """State dict hook of a tracked module: writes dense shapes, changed attributes and removed modules."""

    def __init__(self, as_built: AsBuilt) -> None:
        self.as_built = as_built

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.as_built = _as_built_in(state)

    def __call__(self, module: nn.Module, state_dict: Any, prefix: str, local_metadata: Any) -> None:
        """Write the manifest of the module, whose names have ``prefix`` in ``state_dict``."""
        self.write(module, state_dict, prefix, "")

    def write(self, module: nn.Module, state_dict: Any, prefix: str, inside: str) -> None:
        """Add the manifest of ``module`` to the metadata of ``state_dict``.

        Args:
            module: The tracked module, or a child of it.
            state_dict: The state dict that is being made.
            prefix: Prefix of the names of ``module`` in ``state_dict``.
            inside: Prefix of the names of ``module`` in the tracked module.
        """
        if not hasattr(state_dict, "_metadata"):
            return
        as_built = self.as_built.inside(inside)
        if not as_built.shapes:  # a shared child, which the tracked module names differently
            return
        empty: dict[str, Any] = {"version": 1, "dense_shapes": {}, "attributes": {}, "buffers": {}, "skipped": {}}
        manifest = state_dict._metadata.setdefault(METADATA_KEY, empty)
        manifest["dense_shapes"].update(
            {prefix + name: shape for name, shape in pruned_tensors(module, as_built).items()}
        )
        manifest["attributes"].update(
            {(prefix + path).rstrip("."): values for path, values in _changed_attributes(module, as_built).items()}
        )
        manifest["skipped"].update(
            {
                prefix + name: {prefix + key: shape for key, shape in as_built.shapes_in_removed(name).items()}
                for name in as_built.removed_modules_in(module)
            }
        )
        buffers = non_persistent_buffers(module)
        manifest["buffers"].update(
            {prefix + name: buffers[name].detach() for name in as_built.buffers if name in buffers}
        )


class ShapeLoader:
    """Load hook: gives the module the shapes of the file, smaller or larger, before its weights are copied."""

    def __init__(self, as_built: AsBuilt) -> None:
        self.as_built = as_built

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.as_built = _as_built_in(state)

    def __call__(self, module: nn.Module, state_dict: Any, prefix: str, *_: Any) -> None:
        """Resize the module and its copies, unless it is loaded as a part of another module."""
        if prefix:
            return
        surroundings = self.as_built.surroundings
        manifest = getattr(state_dict, "_metadata", {}).get(METADATA_KEY) or surroundings.manifest(module)
        if manifest:
            self._resize(module, state_dict, manifest)
            for averaged in surroundings.copies(module):
                self._resize(averaged, state_dict, manifest)

    def _resize(self, module: nn.Module, state_dict: Any, manifest: Mapping[str, Any]) -> None:
        as_built = self.as_built
        as_built.record_shapes(module)  # networks built in ``setup`` or ``configure_model`` come after ``track_shapes``
        as_built.set_removed_modules(module, manifest.get("skipped", {}))
        saved = {name: list(shape) for name, shape in manifest["dense_shapes"].items()}
        shapes = {
            name: state_dict[name].shape
            for name, dense in as_built.shapes.items()
            if name in state_dict and saved.get(name, list(state_dict[name].shape)) == dense
        }
        set_shapes(module, shapes)
        self._restore_attributes(module, manifest.get("attributes", {}))
        self._restore_buffers(module, manifest.get("buffers", {}))

    def _restore_attributes(self, module: nn.Module, saved: Mapping[str, Mapping[str, Any]]) -> None:
        self.as_built.record_attributes(module, saved)
        values: dict[str, dict[str, Any]] = {}
        for (path, name), dense in self.as_built.attributes.items():
            if hasattr(submodule(module, path), name):
                values.setdefault(path, {})[name] = saved.get(path, {}).get(name, dense)
        set_saved_attributes(module, values)

    def _restore_buffers(self, module: nn.Module, saved: Mapping[str, Tensor]) -> None:
        self.as_built.record_buffers(module, saved)
        set_saved_buffers(module, {**self.as_built.buffers, **saved})


def pruned_tensors(module: nn.Module, as_built: AsBuilt) -> dict[str, list[int]]:
    """Dense shapes of the tensors of ``module`` whose shape has changed, by name."""
    dense = as_built.shapes
    return {
        name: dense[name]
        for name, tensor in named_tensors(module)
        if name in dense and list(tensor.shape) != dense[name]
    }


def _changed_attributes(module: nn.Module, as_built: AsBuilt) -> dict[str, dict[str, Any]]:
    """Module name -> attribute -> value, for the attributes whose value has changed."""
    found: dict[str, dict[str, Any]] = {}
    for (path, name), dense in as_built.attributes.items():
        owner = submodule(module, path)
        value = dense if owner is None else getattr(owner, name, dense)  # the module may be removed
        if value != dense:
            found.setdefault(path, {})[name] = list(value) if isinstance(value, tuple) else value
    return found


def _as_built_in(state: Mapping[str, Any]) -> AsBuilt:
    """The attribute of a pickled hook, which version 0.1.0 called ``dense``."""
    found: AsBuilt = state["as_built"] if "as_built" in state else state["dense"]
    return found
