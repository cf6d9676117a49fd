"""The manifest: what a state dict says was pruned, so that it can be loaded into the network as it was built."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from math import prod
from typing import Any

from torch import Tensor, nn

from lightning_prune.checkpoint.as_built import AsBuilt, Surroundings, dense_of
from lightning_prune.checkpoint.restore import kept_out, set_saved_attributes, set_saved_buffers, set_shapes, submodule
from lightning_prune.network.tensors import named_tensors
from lightning_prune.surgery.plan import Plan

_KEY = "lightning_prune"  # in `state_dict._metadata`, which checkpoints with weights alone keep as well
MANIFEST = "lightning_prune_manifest"  # in checkpoints


def track_shapes(module: nn.Module, surroundings: Surroundings | None = None) -> None:
    """Let ``module`` write its dense shapes into its state dicts, and take over pruned shapes when loading one.

    The modules right inside ``module``, such as the network of a LightningModule, write their part as well.

    A tensor of a loaded state dict may differ in shape only if the file says that it was pruned from the shape that
    the module was built with; any other difference is the usual error of ``load_state_dict``. Tracking again adds the
    tensors that the module has been given since.
    """
    writer = _writer(module)
    dense = _known_as_part(module) if writer is None else writer.dense
    dense.note_shapes(module)
    if writer is None:
        writer = _ManifestWriter(dense)
        module._register_state_dict_hook(writer)
        module.register_load_state_dict_pre_hook(_ShapeLoader(dense))
    for name, child in module.named_children():
        if not any(isinstance(hook, _PartWriter) and hook.whole is writer for hook in child._state_dict_hooks.values()):
            child._register_state_dict_hook(_PartWriter(writer, name))
    if surroundings is not None:
        dense.surroundings = surroundings


def track_plan(module: nn.Module, plan: Plan) -> None:
    """Let a tracked module also write what ``plan`` removes, attributes that it changes, and buffers kept out of files.

    To be called before it is carried out.
    """
    dense = dense_of(module)
    if dense is not None:
        dense.note_modules(module, plan.removed_modules)
        dense.note_attributes(module, plan.attributes)
        dense.note_buffers(module, plan.keep)


def is_pruned(module: nn.Module) -> bool:
    """Whether a tracked module has tensors of other shapes, or fewer modules, than it was built with."""
    writer = _writer(module)
    return writer is not None and bool(writer.pruned(module, writer.dense) or writer.dense.removed_modules_in(module))


def removed_modules_in(module: nn.Module) -> list[str]:
    """Names of what was removed from a tracked module as a whole."""
    dense = dense_of(module)
    return [] if dense is None else dense.removed_modules_in(module)


def names_in_removed_modules(module: nn.Module) -> list[str]:
    """Names of the tensors in what was removed from a tracked module as a whole."""
    dense = dense_of(module)
    return [] if dense is None else [key for name in dense.removed_modules_in(module) for key in dense.held_by(name)]


def set_removed_modules(module: nn.Module, names: Collection[str]) -> None:
    """Let just the modules in ``names`` be removed from a tracked module; others that were removed come back."""
    dense = dense_of(module)
    if dense is not None:
        dense.set_removed_modules(module, names)


def params_as_built(module: nn.Module) -> int:
    """How many parameters a tracked module had before it was pruned."""
    writer = _writer(module)
    pruned = {} if writer is None else writer.pruned(module, writer.dense)
    removed = 0 if writer is None else writer.dense.params_removed_from(module)
    return removed + sum(prod(pruned.get(name, parameter.shape)) for name, parameter in module.named_parameters())


def manifest_now(module: nn.Module) -> dict[str, Any]:
    """The manifest of a tracked module as it is."""
    writer, empty = _writer(module), OrderedDict[str, Tensor]()
    empty._metadata = OrderedDict()  # type: ignore[attr-defined]
    if writer is not None:
        writer(module, empty, "", None)
    return manifest_of(empty)


def manifest_of(state_dict: Any) -> dict[str, Any]:
    """What a state dict says was pruned; empty where it says nothing.

    ``dense_shapes`` by tensor name, changed ``attributes`` by module name, cut ``buffers`` that are not in it, and
    removed modules (``skipped``) with the dense shapes of what they held.
    """
    manifest: dict[str, Any] = getattr(state_dict, "_metadata", {}).get(_KEY, {})
    return manifest


def manifest_in(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a checkpoint, whichever state dict in it has one.

    A callback that averages weights may have put its own, without a manifest, in the place of the network's; and who
    makes a new dict of the tensors leaves it behind, so that checkpoints of a Trainer hold it a second time.
    """
    own: dict[str, Any] = checkpoint.get(MANIFEST, {})
    return own or next((manifest for value in checkpoint.values() if (manifest := manifest_of(value))), {})


def with_manifest(state_dict: Mapping[str, Any], manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """``state_dict``; if it has no manifest, then with this one."""
    if manifest_of(state_dict) or not manifest:
        return state_dict
    found = OrderedDict(state_dict)
    found._metadata = {_KEY: dict(manifest)}  # type: ignore[attr-defined]
    return found


def _known_as_part(module: nn.Module) -> AsBuilt:
    """What the module that ``module`` is right inside of knows of it, or knew of what it is a copy of."""
    parts = (hook for hook in module._state_dict_hooks.values() if isinstance(hook, _PartWriter))
    part = next(parts, None)
    return AsBuilt() if part is None else copy.deepcopy(part.whole.dense.inside(part.prefix))


def _writer(module: nn.Module) -> _ManifestWriter | None:
    return next((hook for hook in module._state_dict_hooks.values() if isinstance(hook, _ManifestWriter)), None)


class _PartWriter:
    """State dict hook of a module inside a tracked one: the same, of this module alone."""

    def __init__(self, whole: _ManifestWriter, name: str) -> None:
        self.whole, self.name = whole, name

    def __call__(self, module: nn.Module, state_dict: Any, prefix: str, local_metadata: Any) -> None:
        self.whole.write(module, state_dict, prefix, self.prefix)

    @property
    def prefix(self) -> str:
        """What names begin with in the whole; nothing where a copy of the part is the whole."""
        return f"{self.name}." if self.name else ""

    def __deepcopy__(self, memo: dict[int, Any]) -> _PartWriter:
        whole = memo.get(id(self.whole))
        if whole is not None:
            return _PartWriter(whole, self.name)
        return _PartWriter(_ManifestWriter(copy.deepcopy(self.whole.dense.inside(self.prefix))), "")

    def __reduce__(self) -> tuple[Any, ...]:
        """As a function that does nothing: a pickled network must not need this package."""
        return getattr, (nullcontext(), "__exit__")


class _ManifestWriter:
    """State dict hook: which tensors are smaller than they were built, how large they were, and changed attributes."""

    def __init__(self, dense: AsBuilt) -> None:
        self.dense = dense

    def __call__(self, module: nn.Module, state_dict: Any, prefix: str, local_metadata: Any) -> None:
        self.write(module, state_dict, prefix, "")

    def write(self, module: nn.Module, state_dict: Any, prefix: str, inside: str) -> None:
        """Add to the metadata of ``state_dict`` what is known of ``module``, whose names begin with ``inside``."""
        if not hasattr(state_dict, "_metadata"):
            return
        dense = self.dense.inside(inside)
        if not dense.shapes:  # a part that goes by another name in the whole
            return
        empty: dict[str, Any] = {"version": 1, "dense_shapes": {}, "attributes": {}, "buffers": {}, "skipped": {}}
        manifest = state_dict._metadata.setdefault(_KEY, empty)
        manifest["dense_shapes"].update({prefix + name: shape for name, shape in self.pruned(module, dense).items()})
        manifest["attributes"].update(
            {(prefix + path).rstrip("."): values for path, values in self.changed(module, dense).items()}
        )

        manifest["skipped"].update(
            {
                prefix + name: {prefix + key: shape for key, shape in dense.held_by(name).items()}
                for name in dense.removed_modules_in(module)
            }
        )
        cut = kept_out(module)
        manifest["buffers"].update({prefix + name: cut[name].detach() for name in dense.buffers if name in cut})

    def pruned(self, module: nn.Module, dense: AsBuilt) -> dict[str, list[int]]:
        """Dense shapes of the tensors that have another one now."""
        known = dense.shapes
        return {
            name: known[name]
            for name, tensor in named_tensors(module)
            if name in known and list(tensor.shape) != known[name]
        }

    def changed(self, module: nn.Module, dense: AsBuilt) -> dict[str, dict[str, Any]]:
        """Values of the attributes that have another one now."""
        found: dict[str, dict[str, Any]] = {}
        for (path, name), built in dense.attributes.items():
            owner = submodule(module, path)
            value = built if owner is None else getattr(owner, name, built)  # it may be removed
            if value != built:
                found.setdefault(path, {})[name] = list(value) if isinstance(value, tuple) else value
        return found


class _ShapeLoader:
    """Load hook: bring the module to the shapes in the file, smaller or larger, before its weights are copied."""

    def __init__(self, dense: AsBuilt) -> None:
        self.dense = dense

    def __call__(self, module: nn.Module, state_dict: Any, prefix: str, *_: Any) -> None:
        if prefix:
            return
        around = self.dense.surroundings
        manifest = getattr(state_dict, "_metadata", {}).get(_KEY) or around.manifest(module)
        if manifest:
            self._take(module, state_dict, manifest)
            for copy in around.copies(module):
                self._take(copy, state_dict, manifest)

    def _take(self, module: nn.Module, state_dict: Any, manifest: Mapping[str, Any]) -> None:
        self.dense.note_shapes(module)  # networks built in `setup` or `configure_model` come after `track_shapes`
        self.dense.set_removed_modules(module, manifest.get("skipped", {}))
        built = {name: list(shape) for name, shape in manifest["dense_shapes"].items()}
        set_shapes(
            module,
            {
                name: state_dict[name].shape
                for name, dense in self.dense.shapes.items()
                if name in state_dict and built.get(name, list(state_dict[name].shape)) == dense
            },
        )
        self._restore_attributes(module, manifest.get("attributes", {}))
        self._restore_buffers(module, manifest.get("buffers", {}))

    def _restore_attributes(self, module: nn.Module, saved: Mapping[str, Mapping[str, Any]]) -> None:
        self.dense.note_attributes(module, saved)
        due: dict[str, dict[str, Any]] = {}
        for (path, name), dense in self.dense.attributes.items():
            if hasattr(submodule(module, path), name):
                due.setdefault(path, {})[name] = saved.get(path, {}).get(name, dense)
        set_saved_attributes(module, due)

    def _restore_buffers(self, module: nn.Module, saved: Mapping[str, Tensor]) -> None:
        self.dense.note_buffers(module, saved)
        set_saved_buffers(module, {**self.dense.buffers, **saved})
