"""Builds the ``Coupling`` of a network from its trace."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from lightning_prune.coupling.grouping.bundles import find_bundles, solve_attributes
from lightning_prune.coupling.grouping.interchangeable import UnitFamilies, resolve_balances
from lightning_prune.coupling.grouping.unreached import shared_with_unreached
from lightning_prune.coupling.groups import Activation, Coupling, Group, Member, Passes, PredictedShape, WidthScalar
from lightning_prune.coupling.symbols.channel_ids import NO_CHANNEL, Ids, Reasons
from lightning_prune.coupling.symbols.sizes import Equation, Expression, LinearDim, SizeOf, rewritten
from lightning_prune.coupling.tracing.trace import ENTRIES, KERNEL, UNUSED, ActivationSite, Labels, Trace

Place = tuple[str, int]  # tensor, dimension


def build_coupling(trace: Trace, passes: Passes) -> Coupling:
    """The groups, frozen channels and costs that follow from ``trace``."""
    unused = (
        f"{UNUSED}; it may in train mode, which does not run on the example input alone"
        if passes.train_fails
        else UNUSED
    )
    for name, labels in trace.labels.items():
        if name not in trace.reached:
            for label in labels:
                if label is not None:
                    trace.channel_ids.freeze(label, unused)
    families, balanced = resolve_balances(trace)
    builder = _Builder(trace, families)
    groups = builder.groups
    equations = [
        Equation(builder.resolved(e.left), builder.resolved(e.right), e.where)
        for e in (*trace.size_equations.equations, *balanced)
    ]
    on_meta = all(tensor.is_meta for tensor in trace.tensors.values())
    unreached = {} if on_meta else shared_with_unreached(groups, builder.shapes, trace.reached, trace.module_lists)
    for name in unreached:
        del groups[name]
    attributes = solve_attributes(equations, trace.size_equations.values)
    bundles, stuck = find_bundles({name: group.size for name, group in groups.items()}, equations, attributes)
    for name in stuck:
        del groups[name]
    frozen = {**builder.frozen(), **stuck, **unreached}
    return Coupling(
        groups=groups,
        frozen={name: reason for name, reason in frozen.items() if name not in groups},
        shapes=builder.shapes,
        param_dims={name: builder.dims(builder.shapes[name], trace.labels[name]) for name in builder.parameters},
        mac_terms=tuple((term.constant, tuple(builder.linear(ids) for ids in term.dims)) for term in trace.macs),
        on_meta=on_meta,
        passes=passes,
        predicted_shapes=tuple(
            PredictedShape(
                where, cut, shape, builder.dims(shape, labels) if any(ids is not None for ids in labels) else ()
            )
            for where, cut, shape, labels in trace.shapes
        ),
        scalars=tuple(builder.scalar(number) for number, found in enumerate(trace.scalars.found) if found.run == 1),
        constants=tuple(
            (values, tuple(builder.linear(ids[ids != NO_CHANNEL]).per_unit)) for values, ids in trace.scalars.constants
        ),
        bundles=bundles,
        attributes=attributes,
    )


class _Builder:
    """Finds the groups, and expresses every size as a function of their widths."""

    def __init__(self, trace: Trace, families: UnitFamilies) -> None:
        self.trace, self.families = trace, families
        self.shapes = {name: tuple(tensor.shape) for name, tensor in trace.tensors.items()}
        self.parameters = {name: None for name, tensor in trace.tensors.items() if isinstance(tensor, nn.Parameter)}
        self._only_inputs = trace.input_dims - trace.output_dims
        self.groups: dict[str, Group] = {}
        self._frozen: list[tuple[list[Place], str]] = []  # places of frozen units, and the reason
        self._group_of = np.full(trace.channel_ids.count, -1, dtype=np.int64)  # the number of the group of every unit
        self._every: dict[int, Tensor] = {}  # shared index tensors: `plan_removal` handles each object once
        self._linear: dict[int, tuple[Ids, LinearDim]] = {}
        self._sites: defaultdict[int, list[ActivationSite]] = defaultdict(
            list
        )  # by the families whose activations they hold
        for site in trace.activation_sites.values():
            if site.dim is not None:
                for family in np.unique(families.family_of[families.units[site.ids[site.ids != NO_CHANNEL]]]).tolist():
                    self._sites[family].append(site)
        self._find_groups()
        self._names = list(self.groups)
        self._sizes = np.array([group.size for group in self.groups.values()] or [1])

    def _find_groups(self) -> None:
        units, places = self.families.units, self.families.places
        reasons = self.trace.channel_ids.frozen_units(units)
        inexact = self.trace.channel_ids.inexact_units(units)
        grouped = self.trace.channel_ids.grouped_conv_units(units)
        used: Counter[str] = Counter()
        for whole, members in self.families.families:
            signature = [(p, n) for p, n in whole if p < len(places)]
            own_places = [places[p] for p, _ in signature]
            free = members[~reasons.known(members)]
            made = any(self._is_output(*place) for place in own_places)  # otherwise it is read from data
            if not free.size:
                self._frozen.append((own_places, reasons.of(int(members[0]))))
                continue
            own = next(
                (places[p] for p, n in signature if n * len(members) == self.shapes[places[p][0]][places[p][1]]),
                own_places[0],
            )
            used[own[0]] += 1
            name = own[0] if used[own[0]] == 1 else f"{own[0]}#{used[own[0]]}"
            if len(members) == 1 and made:
                self._frozen.append(([own, *own_places], "all of its channels can only go together"))
            elif made:
                self._group_of[free] = len(self.groups)
                self.groups[name] = self._group(name, own_places, free, inexact, grouped)

    def frozen(self) -> dict[str, str]:
        """Tensor with frozen output channels -> reason, without the tensors that shrink along another dimension."""
        shrinking = {(m.tensor, m.dim) for group in self.groups.values() for m in group.members if not m.reads}
        tensors = {tensor for tensor, _ in shrinking} | self.groups.keys()
        found: dict[str, str] = {}
        for own_places, reason in self._frozen:
            made = [(place[0] not in tensors, place) for place in own_places if self._is_output(*place)]
            whole, place = max(made, key=lambda entry: entry[0], default=(False, ("", 0)))
            partly = place in shrinking and place[0] not in self.groups
            if reason != KERNEL and (whole or partly) and found.get(place[0], ENTRIES) == ENTRIES:
                found[place[0]] = reason if whole else f"a part of its channels: {reason}"
        return found

    def _is_output(self, tensor: str, dim: int) -> bool:
        """Whether these are channels of a parameter, and not only input channels of a layer."""
        return tensor in self.parameters and (tensor, dim) not in self._only_inputs

    def _group(self, name: str, places: Iterable[Place], members: Ids, inexact: Reasons, grouped: set[int]) -> Group:
        own = [(place, self.trace.labels[place[0]][place[1]]) for place in places]
        activations = []
        for site in self._sites.get(int(self.families.family_of[members[0]]), []):
            owner = np.where(site.ids == NO_CHANNEL, NO_CHANNEL, self.families.units[site.ids])
            index = self._index(owner, members)
            if index is not None and site.dim is not None:
                activations.append(Activation(site.module, site.dim, index))
        doubtful = members[inexact.known(members)]
        return Group(
            name=name,
            members=tuple(
                Member(
                    tensor,
                    dim,
                    self._index(self.families.units[ids], members),  # type: ignore[arg-type]
                    (tensor, dim) in self.trace.input_dims,
                )
                for (tensor, dim), ids in own
            ),
            activations=tuple(activations),
            inexact=inexact.of(int(doubtful[0])) if doubtful.size else None,
            min_units=1 if grouped.isdisjoint(members.tolist()) else 2,
        )

    def _index(self, owner: Ids, members: Ids) -> Tensor | None:
        """Indices at which ``owner`` equals each of ``members``, (units, indices per unit); None if counts differ."""
        if len(owner) == len(members) and (owner == members).all():  # the common case
            return self._every.setdefault(len(members), torch.arange(len(members))[:, None])
        rank = np.searchsorted(members, owner)
        rank[rank == len(members)] = 0
        positions = np.flatnonzero(members[rank] == owner)
        counts = np.bincount(rank[positions], minlength=len(members))
        if counts[0] == 0 or (counts != counts[0]).any():
            return None
        order = np.argsort(owner[positions], kind="stable")
        return torch.from_numpy(positions[order].reshape(len(members), -1))

    def linear(self, ids: Ids) -> LinearDim:
        """The size of a dimension that carries ``ids``, as a function of the widths of groups."""
        found = self._linear.get(id(ids))
        known = found[1] if found is not None else None
        if known is None:
            owners = self._group_of[self.families.units[ids[ids != NO_CHANNEL]]]
            counts = np.bincount(owners[owners >= 0], minlength=len(self._sizes))
            per_unit = {self._names[g]: float(counts[g] / self._sizes[g]) for g in counts.nonzero()[0]}
            known = LinearDim(len(ids), per_unit)
            self._linear[id(ids)] = ids, known  # kept alive, so that no other array gets its id
        return known

    def dims(self, shape: tuple[int, ...], labels: Labels) -> tuple[LinearDim, ...]:
        """The size of every dimension of a tensor with ``shape`` and ``labels``."""
        return tuple(
            LinearDim(size, {}) if ids is None else self.linear(ids) for ids, size in zip(labels, shape, strict=True)
        )

    def scalar(self, number: int) -> WidthScalar:
        """A scalar of the passes with the weights that can compensate for its change."""
        found = self.trace.scalars.found[number]
        rows: dict[str, tuple[int, Tensor]] = {}
        compensating = found.compensating_rows
        if compensating is not None:
            weight, *biases = compensating.tensors
            index = torch.from_numpy(np.sort(compensating.rows))
            rows = {weight: (compensating.dim, index), **{bias: (0, index) for bias in biases}}
        power = 1 if compensating is None else compensating.power
        return WidthScalar(found.value, rows, power, tuple(self.linear(found.widths).per_unit), found.where)

    def resolved(self, expression: Expression) -> Expression:
        """``expression`` as a function of the widths of groups."""

        def leaf(part: Expression) -> Expression:
            return self.linear(part.ids) if isinstance(part, SizeOf) else part

        return rewritten(expression, leaf)


def _any_channels(labels: Labels) -> bool:
    return any(ids is not None for ids in labels)
