"""The dense network, as budgets remember it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lightning_prune.coupling.groups import Coupling


@dataclass(frozen=True)
class DenseReference:
    """The dense network, which every share refers to.

    Attributes:
        params: Its parameters.
        macs: Its multiply-accumulates for one example.
        units: Group name -> units, of the groups that may be pruned.
        classes: Group name -> name of the first group of the same kind (``isomorphism_classes``).
        quantum: Group name -> units it gives up at once, of the groups that shrink together with others.
    """

    params: float
    macs: float
    units: Mapping[str, int]
    classes: Mapping[str, str] = field(default_factory=dict)
    quantum: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, coupling: Coupling, groups: Iterable[str] | None = None, classes: Mapping[str, str] | None = None
    ) -> DenseReference:
        """Take the network as it is now for the original; of all its groups, or of those named."""
        units = {name: coupling.groups[name].size for name in (coupling.groups if groups is None else groups)}
        quantum = {name: given for b in coupling.bundles for name, given in b.quantum.items() if name in units}
        return cls(coupling.params_after({}), coupling.macs_after({}), units, dict(classes or {}), quantum)
