"""Groups of interchangeable units, read off the resolved slots of a trace."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lightning_prune.coupling.slots import FIXED, Ids
from lightning_prune.coupling.trace import KERNEL, UNUSED, Labels, Trace, named_tensors


@dataclass(frozen=True)
class Member:
    """The part of a group in one dimension of one tensor.

    Attributes:
        tensor: Qualified name of the parameter or buffer.
        dim: The dimension.
        index: Indices along ``dim``, shape (units, indices a unit): row ``u`` is what unit ``u`` owns.
        reads: Whether a layer reads these channels from its input (they are no output of it).
    """

    tensor: str
    dim: int
    index: Tensor
    reads: bool


@dataclass(frozen=True)
class Activation:
    """Where the activations of a group can be seen.

    Attributes:
        module: Qualified name of the module whose output carries the channels.
        dim: The channel dimension of that output, counted from the end (negative).
        index: Indices along ``dim``, shape (units, indices a unit).
    """

    module: str
    dim: int
    index: Tensor


@dataclass(frozen=True)
class Group:
    """Units that live in the same dimensions of the same tensors; each is removed as a whole.

    Attributes:
        name: The first tensor with a dimension that is all the group's, else its first tensor; with ``#2``, ``#3``, ...
            where several groups would have the same name.
        members: Every (tensor, dimension) the units live in.
        activations: Where the activations of the units can be seen; may be empty.
        inexact: Why removing a unit is not equal to masking it, None where it is equal.
        least: Fewest units that may stay: 2 where a grouped convolution would become a depthwise one with 1.
    """

    name: str
    members: tuple[Member, ...]
    activations: tuple[Activation, ...]
    inexact: str | None = None
    least: int = 1

    @property
    def size(self) -> int:
        """Number of units."""
        return int(self.members[0].index.shape[0])

    @property
    def channels_per_unit(self) -> int:
        """Indices that one unit owns in the first tensor."""
        return int(self.members[0].index.shape[1])


@dataclass(frozen=True)
class Bundle:
    """Groups that the forward pass makes shrink together: by count, whichever units each of them gives.

    Attributes:
        quantum: Group name -> units that it gives up with every step. All of its units are a multiple of it, the same one in the whole bundle.
        reason: What ties them, for the user.
    """

    quantum: Mapping[str, int]
    reason: str


@dataclass(frozen=True)
class LinearDim:
    """A dimension as a linear function of how many units each group keeps: size − Σ per_unit · removed."""

    size: int
    per_unit: Mapping[str, float]

    def after(self, removed: Mapping[str, int]) -> float:
        """The size once so many units of each group are removed."""
        return self.size - sum(per_unit * removed.get(name, 0) for name, per_unit in self.per_unit.items())


@dataclass(frozen=True)
class Coupling:
    """What is known about a network: its groups, what must stay, and what each unit costs.

    Attributes:
        groups: Removable groups by name.
        frozen: Group name -> why nothing in it can be removed. Kernel positions and what layers read from the
            network's input go without saying.
        shapes: Shape of every parameter and buffer when it was analysed.
        param_dims: For every parameter, its dimensions.
        mac_terms: (constant, dimensions) of every convolution and matrix product of one example's forward pass.
        on_meta: Whether the network runs on the meta device, where a forward pass costs nothing.
        trains: Whether its forward pass also runs in train mode on the example input alone.
        bundles: Groups that shrink together; every group is in at most one.
        reshapes: What every reshape of the passes in eval and in train mode gives; empty where it has no channels.
    """

    groups: Mapping[str, Group]
    frozen: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    param_dims: Mapping[str, tuple[LinearDim, ...]]
    mac_terms: tuple[tuple[float, tuple[LinearDim, ...]], ...]
    on_meta: bool
    trains: bool
    reshapes: tuple[tuple[LinearDim, ...], ...] = ()
    bundles: tuple[Bundle, ...] = ()


def build_coupling(trace: Trace, module: nn.Module, trains: bool) -> Coupling:
    """Resolve the slots of ``trace``, which has seen ``module``, into groups."""
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(module)}
    for name, labels in trace.labels.items():
        if name not in trace.reached:
            for label in labels:
                if label is not None:
                    trace.slots.freeze(label, UNUSED)
    units = trace.slots.units()
    frozen_units = trace.slots.frozen_units(units)
    places = [(name, dim) for name, labels in trace.labels.items() for dim, ids in enumerate(labels) if ids is not None]
    signatures = _signatures(trace, units, places)

    groups: dict[str, Group] = {}
    frozen: dict[str, str] = {}
    group_of = np.full(trace.slots.count, -1, dtype=np.int64)
    inexact, grouped = trace.slots.inexact_units(units), trace.slots.grouped_units(units)
    used: Counter[str] = Counter()
    for signature, members in signatures.items():
        place = places[signature[0][0]]
        free = [unit for unit in members if unit not in frozen_units]
        if not free:
            reason = frozen_units[members[0]]
            if reason != KERNEL and place not in trace.consumed:
                frozen.setdefault(place[0], reason)
            continue
        own = next((places[p] for p, n in signature if n * len(members) == shapes[places[p][0]][places[p][1]]), place)
        used[own[0]] += 1
        name = own[0] if used[own[0]] == 1 else f"{own[0]}#{used[own[0]]}"
        if len(members) == 1:
            frozen[name] = "all of its channels can only go together"
        else:
            group_of[free] = len(groups)
            groups[name] = _group(name, trace, units, places, signature, np.array(free), inexact, grouped)

    names = list(groups)
    sizes = np.array([group.size for group in groups.values()] or [1])

    def linear(ids: Ids) -> LinearDim:
        owners = group_of[units[ids[ids != FIXED]]]
        counts = np.bincount(owners[owners >= 0], minlength=len(sizes)) / sizes
        return LinearDim(len(ids), {names[g]: float(counts[g]) for g in np.flatnonzero(counts)})

    def dims(shape: tuple[int, ...], labels: Labels) -> tuple[LinearDim, ...]:
        return tuple(
            LinearDim(size, {}) if ids is None else linear(ids) for ids, size in zip(labels, shape, strict=True)
        )

    return Coupling(
        groups=groups,
        frozen={name: reason for name, reason in frozen.items() if name not in groups},
        shapes=shapes,
        param_dims={name: dims(shapes[name], trace.labels[name]) for name, _ in module.named_parameters()},
        mac_terms=tuple((term.constant, tuple(linear(ids) for ids in term.dims)) for term in trace.macs),
        on_meta=all(tensor.is_meta for _, tensor in named_tensors(module)),
        trains=trains,
        reshapes=tuple(
            dims(shape, labels) if any(ids is not None for ids in labels) else () for shape, labels in trace.reshapes
        ),
    )


Signature = tuple[tuple[int, int], ...]  # (place, how many indices a unit owns there), in the order of the tensors


def _signatures(trace: Trace, units: Ids, places: list[tuple[str, int]]) -> dict[Signature, list[int]]:
    """Signature -> its units; in the order of the network's tensors, which no removal changes."""
    labels = [trace.labels[name][dim] for name, dim in places]
    owner = np.concatenate([units[ids] for ids in labels]) if labels else np.empty(0, np.int64)  # type: ignore[index]
    place = np.repeat(np.arange(len(places)), [len(ids) for ids in labels])  # type: ignore[arg-type]
    pairs, counts = np.unique(owner * max(len(places), 1) + place, return_counts=True)
    owner, place = np.divmod(pairs, max(len(places), 1))
    starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]]) if owner.size else np.empty(0, np.int64)
    found: defaultdict[Signature, list[int]] = defaultdict(list)
    for start, stop in zip(starts, [*starts[1:], owner.size], strict=True):
        signature = tuple(zip(place[start:stop].tolist(), counts[start:stop].tolist(), strict=True))
        found[signature].append(int(owner[start]))
    return dict(sorted(found.items()))


def _group(
    name: str,
    trace: Trace,
    units: Ids,
    places: list[tuple[str, int]],
    signature: Signature,
    members: Ids,
    inexact: dict[int, str],
    grouped: set[int],
) -> Group:
    def index(ids: Ids) -> Tensor:
        owner = np.where(ids == FIXED, FIXED, units[ids])
        positions = np.flatnonzero(np.isin(owner, members))
        order = np.argsort(owner[positions], kind="stable")
        return torch.from_numpy(positions[order].reshape(len(members), -1))

    own = [(places[p], trace.labels[places[p][0]][places[p][1]]) for p, _ in signature]
    activations = []
    for tap in trace.taps.values():
        if tap.dim is None:
            continue
        owner = np.where(tap.ids == FIXED, FIXED, units[tap.ids])
        seen, counts = np.unique(owner[np.isin(owner, members)], return_counts=True)
        if len(seen) == len(members) and len(set(counts.tolist())) == 1:
            activations.append(Activation(tap.module, tap.dim, index(tap.ids)))
    return Group(
        name=name,
        members=tuple(
            Member(tensor, dim, index(ids), (tensor, dim) in trace.consumed)  # type: ignore[arg-type]
            for (tensor, dim), ids in own
        ),
        activations=tuple(activations),
        inexact=next((inexact[u] for u in members.tolist() if u in inexact), None),
        least=1 if grouped.isdisjoint(members.tolist()) else 2,
    )
