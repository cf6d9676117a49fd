"""Checkpoints of pruned networks: the manifest of what was pruned, loading and inspection."""

from lightning_prune.checkpoint.as_built import Surroundings
from lightning_prune.checkpoint.inspection import inspect_file, show
from lightning_prune.checkpoint.loading import BUILDERS, load_other_size, load_pruned, trust_builders
from lightning_prune.checkpoint.manifest import (
    MANIFEST,
    is_pruned,
    manifest_in,
    manifest_now,
    names_in_removed_modules,
    params_as_built,
    removed_modules_in,
    track_plan,
    track_shapes,
)
from lightning_prune.checkpoint.stored_weights import StoredWeights, reinitialize

__all__ = [
    "BUILDERS",
    "MANIFEST",
    "StoredWeights",
    "Surroundings",
    "inspect_file",
    "is_pruned",
    "load_other_size",
    "load_pruned",
    "manifest_in",
    "manifest_now",
    "names_in_removed_modules",
    "params_as_built",
    "reinitialize",
    "removed_modules_in",
    "show",
    "track_plan",
    "track_shapes",
    "trust_builders",
]
