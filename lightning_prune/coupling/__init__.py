"""Dependency groups: which channels must be removed together, found by following channel ids through a forward pass."""

from lightning_prune.coupling.analysis import find_coupling
from lightning_prune.coupling.groups import Activation, Bundle, Coupling, Group, LinearDim, Member, Passes

__all__ = ["Activation", "Bundle", "Coupling", "Group", "LinearDim", "Member", "Passes", "find_coupling"]
