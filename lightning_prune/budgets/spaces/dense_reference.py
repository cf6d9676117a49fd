"""Dense reference: size of the dense network, which the shares of budgets refer to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lightning_prune.coupling.groups import Coupling


@dataclass(frozen=True)
class DenseReference:
    """Size of the dense network, which the shares of budgets refer to.

    Attributes:
        params: Number of parameters.
        macs: Multiply-accumulates for one example.
        units: Name -> number of units, of each group of channels that may be pruned; or name of a block that may be
            removed -> 1.
        classes: Group name -> name of the first group of the same kind (``isomorphism_classes``).
        quantum: Group name -> units removed at once, of the groups that shrink only together with others.
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
        """The size of the analyzed network, with all of its ``groups`` or those named."""
        units = {name: coupling.groups[name].size for name in (coupling.groups if groups is None else groups)}
        quantum = {name: given for b in coupling.bundles for name, given in b.quantum.items() if name in units}
        return cls(coupling.params_after({}), coupling.macs_after({}), units, dict(classes or {}), quantum)
