"""The manifest of a pruned module: what was pruned, written into its state dicts so that a dense network can load them.

A manifest is a dict with the entries ``version``, ``dense_shapes`` (tensor name -> shape as built), ``attributes``
(module name -> attribute -> value, for changed integers), ``buffers`` (name -> values, for cut buffers that no state
dict has) and ``skipped`` (name of a removed module -> tensor name -> shape as built).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Mapping
from math import prod
from typing import Any

from torch import Tensor, nn

from lightning_prune.checkpoint.as_built import AsBuilt, Surroundings, as_built_of
from lightning_prune.checkpoint.state_dict_hooks import (
    METADATA_KEY,
    ManifestWriter,
    PartWriter,
    ShapeLoader,
    pruned_tensors,
)
from lightning_prune.surgery.plan import Plan

MANIFEST = "lightning_prune_manifest"  # key of the manifest in a checkpoint


def track_shapes(module: nn.Module, surroundings: Surroundings | None = None) -> None:
    """Track a module: it writes its dense shapes into its state dicts, and takes over pruned shapes when loading one.

    The direct children of ``module``, such as the network of a LightningModule, write their part as well.

    A tensor of a loaded state dict may differ in shape only if the file records that it was pruned from the shape that
    the module was built with; any other difference is the usual error of ``load_state_dict``. Calling this again adds
    the tensors that the module has been given since.

    Args:
        module: The network, as it was built or pruned while tracked.
        surroundings: Where the module finds a missing manifest, and the copies that follow its shapes.
    """
    writer = _writer(module)
    as_built = _as_built_of_part(module) if writer is None else writer.as_built
    as_built.record_shapes(module)
    if writer is None:
        writer = ManifestWriter(as_built)
        module._register_state_dict_hook(writer)
        module.register_load_state_dict_pre_hook(ShapeLoader(as_built))
    for name, child in module.named_children():
        if not any(isinstance(hook, PartWriter) and hook.whole is writer for hook in child._state_dict_hooks.values()):
            child._register_state_dict_hook(PartWriter(writer, name))
    if surroundings is not None:
        as_built.surroundings = surroundings


def track_plan(module: nn.Module, plan: Plan) -> None:
    """Record what ``plan`` is going to change in a tracked module: removed modules, attributes, non-persistent buffers.

    Has to be called before the plan is applied.
    """
    as_built = as_built_of(module)
    if as_built is not None:
        as_built.record_modules(module, plan.removed_modules)
        as_built.record_attributes(module, plan.attributes)
        as_built.record_buffers(module, plan.keep)


def is_pruned(module: nn.Module) -> bool:
    """Whether a tracked module has tensors of other shapes, or fewer modules, than it was built with."""
    as_built = as_built_of(module)
    return as_built is not None and bool(pruned_tensors(module, as_built) or as_built.removed_modules_in(module))


def removed_modules_in(module: nn.Module) -> list[str]:
    """Names of the modules that were removed from a tracked module."""
    as_built = as_built_of(module)
    return [] if as_built is None else as_built.removed_modules_in(module)


def names_in_removed_modules(module: nn.Module) -> list[str]:
    """Names of the tensors that the removed modules of a tracked module had."""
    as_built = as_built_of(module)
    if as_built is None:
        return []
    return [key for name in as_built.removed_modules_in(module) for key in as_built.shapes_in_removed(name)]


def set_removed_modules(module: nn.Module, names: Collection[str]) -> None:
    """Remove the modules in ``names`` from a tracked module, and restore all others that were removed."""
    as_built = as_built_of(module)
    if as_built is not None:
        as_built.set_removed_modules(module, names)


def params_as_built(module: nn.Module) -> int:
    """Number of parameters that a tracked module had before it was pruned."""
    as_built = as_built_of(module)
    pruned = {} if as_built is None else pruned_tensors(module, as_built)
    removed = 0 if as_built is None else as_built.params_removed_from(module)
    return removed + sum(prod(pruned.get(name, parameter.shape)) for name, parameter in module.named_parameters())


def manifest_now(module: nn.Module) -> dict[str, Any]:
    """The manifest of a tracked module in its present state."""
    writer, empty = _writer(module), OrderedDict[str, Tensor]()
    empty._metadata = OrderedDict()  # type: ignore[attr-defined]
    if writer is not None:
        writer(module, empty, "", None)
    return manifest_of(empty)


def manifest_of(state_dict: Any) -> dict[str, Any]:
    """The manifest in the metadata of a state dict; empty where there is none."""
    manifest: dict[str, Any] = getattr(state_dict, "_metadata", {}).get(METADATA_KEY, {})
    return manifest


def manifest_in(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a checkpoint: its own entry, or that of the first state dict with a manifest.

    A callback that averages weights may have replaced the network's state dict by its own, which has no manifest, and
    a new dict of the same tensors has no metadata: checkpoints of a Trainer therefore hold the manifest a second time.
    """
    own: dict[str, Any] = checkpoint.get(MANIFEST, {})
    return own or next((manifest for value in checkpoint.values() if (manifest := manifest_of(value))), {})


def with_manifest(state_dict: Mapping[str, Any], manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """``state_dict`` with ``manifest`` in its metadata, unless it has a manifest already."""
    if manifest_of(state_dict) or not manifest:
        return state_dict
    found = OrderedDict(state_dict)
    found._metadata = {METADATA_KEY: dict(manifest)}  # type: ignore[attr-defined]
    return found


def _as_built_of_part(module: nn.Module) -> AsBuilt:
    """What the tracked parent of ``module`` has recorded of it; empty where ``module`` has no tracked parent."""
    parts = (hook for hook in module._state_dict_hooks.values() if isinstance(hook, PartWriter))
    part = next(parts, None)
    return AsBuilt() if part is None else copy.deepcopy(part.whole.as_built.inside(part.prefix))


def _writer(module: nn.Module) -> ManifestWriter | None:
    return next((hook for hook in module._state_dict_hooks.values() if isinstance(hook, ManifestWriter)), None)
