"""Which channels must be removed together: found by following their indices through a forward pass."""

from lightning_prune.coupling.analyse import analyse
from lightning_prune.coupling.attributes import sync_attributes, sync_changed
from lightning_prune.coupling.copies import copy_of
from lightning_prune.coupling.example import Example, collecting_later, run_on_copy
from lightning_prune.coupling.groups import Activation, Bundle, Coupling, Group, LinearDim, Member, Passes
from lightning_prune.coupling.tensors import named_tensors

__all__ = [
    "Activation",
    "Bundle",
    "Coupling",
    "Example",
    "Group",
    "LinearDim",
    "Member",
    "Passes",
    "analyse",
    "collecting_later",
    "copy_of",
    "named_tensors",
    "run_on_copy",
    "sync_attributes",
    "sync_changed",
]
