"""What a budget chooses from: ranked units with their costs, or weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor, gcd, prod

import torch
from torch import Tensor

from lightning_prune.coupling import Coupling


@dataclass(frozen=True)
class Original:
    """The dense network, which every share refers to.

    Attributes:
        params: Its parameters.
        macs: Its multiply-accumulates for one example.
        units: Group name -> units, of the groups that may be pruned.
    """

    params: float
    macs: float
    units: Mapping[str, int]

    @classmethod
    def of(cls, coupling: Coupling, groups: Iterable[str] | None = None) -> Original:
        """Take the network as it is now for the original; of all its groups, or of those named."""
        units = {name: coupling.groups[name].size for name in (coupling.groups if groups is None else groups)}
        return cls(_params(coupling, {}), _macs(coupling, {}), units)


@dataclass(frozen=True)
class ChannelSpace:
    """The units that may be removed, in the order of their scores.

    Attributes:
        coupling: The network's groups and costs.
        scores: Group name -> scores, shape (units,).
        origin: The dense network.
        round_to: Channels that a group keeps are a multiple of this, where it has as many.
    """

    coupling: Coupling
    scores: Mapping[str, Tensor]
    origin: Original
    round_to: int = 1

    @cached_property
    def now(self) -> dict[str, int]:
        """Group name -> units it has."""
        return {name: len(scores) for name, scores in self.scores.items()}

    @cached_property
    def original(self) -> dict[str, int]:
        """Group name -> units it had when the network was dense."""
        return {name: self.origin.units.get(name, now) for name, now in self.now.items()}

    @cached_property
    def exhausted(self) -> dict[str, int]:
        """Group name -> units it had when dense, for groups with one unit left, which cannot be removed any more."""
        return {name: units for name, units in self.origin.units.items() if name not in self.coupling.groups}

    @cached_property
    def floor(self) -> dict[str, int]:
        """Group name -> fewest units it can keep."""
        return {name: self.rounded(name, 0) for name in self.now}

    @cached_property
    def removable(self) -> int:
        """How many units can go in all."""
        return sum(self.now.values()) - sum(self.floor.values())

    @property
    def original_params(self) -> float:
        """Parameters of the dense network."""
        return self.origin.params

    @property
    def original_macs(self) -> float:
        """Multiply-accumulates of the dense network."""
        return self.origin.macs

    def rounded(self, name: str, units: int | float) -> int:
        """The nearest number of units that ``round_to`` allows, from the fewest that may stay to all there are."""
        group = self.coupling.groups[name]
        step = self.round_to // gcd(self.round_to, group.channels_per_unit)
        steps = max(floor(units / step + 0.5), ceil(group.least / step))
        return min(step * steps, self.now[name])

    def keep_share(self, removed: float) -> dict[str, int]:
        """Units left where every group gives the share ``removed`` of its original."""
        wanted = {name: original * (1 - removed) for name, original in self.original.items()}
        return {
            name: now if wanted[name] >= now else self.rounded(name, wanted[name]) for name, now in self.now.items()
        }

    def keep_after(self, count: int) -> dict[str, int]:
        """Units left after the ``count`` lowest-ranked of all are removed."""
        gone = torch.bincount(self._owner_by_rank[: max(count, 0)], minlength=len(self.now))
        return {
            name: now if not lost else self.rounded(name, now - lost)
            for (name, now), lost in zip(self.now.items(), gone.tolist(), strict=True)
        }

    def params(self, kept: Mapping[str, int]) -> float:
        """Parameters of the network with so many units kept in each group."""
        return _params(self.coupling, self._removed(kept))

    def macs(self, kept: Mapping[str, int]) -> float:
        """Multiply-accumulates of one example with so many units kept in each group."""
        return _macs(self.coupling, self._removed(kept))

    def lowest(self, kept: Mapping[str, int]) -> dict[str, Tensor]:
        """Group name -> bool tensor (units,), True for the lowest-scored units beyond those kept."""
        removed = {}
        for name, scores in self.scores.items():
            order = torch.argsort(scores, stable=True)[: self.now[name] - kept[name]]
            removed[name] = torch.zeros(len(scores), dtype=torch.bool).index_fill_(0, order, True)
        return removed

    @cached_property
    def _owner_by_rank(self) -> Tensor:
        """Group number of every removable unit, lowest score first; ties by group, then by unit."""
        owners, values = [], []
        for number, (name, scores) in enumerate(self.scores.items()):
            count = self.now[name] - self.floor[name]
            values.append(torch.sort(scores.double()).values[:count])
            owners.append(torch.full((count,), number))
        return torch.cat(owners)[torch.argsort(torch.cat(values), stable=True)]

    def _removed(self, kept: Mapping[str, int]) -> dict[str, int]:
        return {name: now - kept[name] for name, now in self.now.items()}


@dataclass(frozen=True)
class WeightSpace:
    """The weights that may be masked.

    Attributes:
        sizes: Parameter name -> number of weights.
        masked: Parameter name -> number of weights masked already.
    """

    sizes: Mapping[str, int]
    masked: Mapping[str, int]

    @property
    def maskable(self) -> int:
        """How many can be masked with one left in every parameter."""
        return sum(self.sizes.values()) - len(self.sizes)


def _params(coupling: Coupling, removed: Mapping[str, int]) -> float:
    return sum(prod(dim.after(removed) for dim in dims) for dims in coupling.param_dims.values())


def _macs(coupling: Coupling, removed: Mapping[str, int]) -> float:
    return sum(constant * prod(dim.after(removed) for dim in dims) for constant, dims in coupling.mac_terms)
