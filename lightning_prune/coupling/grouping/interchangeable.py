"""Interchangeable units: units in the same dimensions of the same tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_prune.coupling.symbols.channel_ids import NO_CHANNEL, Ids
from lightning_prune.coupling.symbols.sizes import Equation, SizeOf
from lightning_prune.coupling.tracing.trace import Trace

Signature = tuple[tuple[int, int], ...]  # (number of a place, indices of a unit in it), in the order of the tensors


@dataclass(frozen=True)
class UnitFamilies:
    """The units of a trace, divided into families of interchangeable units.

    Attributes:
        units: The unit of every channel id.
        places: (tensor, dimension) of every label of a parameter or buffer. Higher numbers in a signature stand for
            pieces that the code cuts out: their units are not interchangeable with others.
        families: (signature, its units, ascending), in the order of the network's tensors, which no removal changes.
        family_of: The number of the family of every unit.
    """

    units: Ids
    places: list[tuple[str, int]]
    families: list[tuple[Signature, Ids]]
    family_of: Ids


def resolve_balances(trace: Trace) -> tuple[UnitFamilies, list[Equation]]:
    """Resolve the ties and balances of ``trace``.

    The rows of a balance must lose the same number of channels. Rows that are different families choose their channels
    independently, and only their sizes are coupled, by an equation. All other rows lose the same positions: a tie.
    """
    balances = {tuple(row.tobytes() for row in rows): (rows, where) for rows, where in trace.balances}
    while True:
        families = _unit_families(trace)
        frozen = trace.channel_ids.frozen_units(families.units)
        tied = False
        equations = []
        for key, (rows, where) in list(balances.items()):
            distinct = _distinct(families, rows)
            if len(distinct) == 1:
                continue
            if all(
                (row != NO_CHANNEL).all() and not frozen.known(families.units[row]).any() for row in distinct
            ) and _are_families(families, distinct):
                equations += [Equation(SizeOf(row), SizeOf(distinct[0]), where) for row in distinct[1:]]
                continue
            tied = True
            del balances[key]
            for row in distinct[1:]:
                trace.channel_ids.tie(distinct[0], row, _unequal_parts(where))
        if not tied:
            return families, equations


def _unequal_parts(where: str) -> str:
    at = f"{where!r}: " if where else ""
    return f"{at}forward cuts it into equal parts together with entries that cannot shrink"


def _distinct(families: UnitFamilies, rows: list[Ids]) -> list[Ids]:
    """The rows without those that consist of the same units in the same order as an earlier row."""
    found: dict[bytes, Ids] = {}
    for row in rows:
        found.setdefault(np.where(row == NO_CHANNEL, NO_CHANNEL, families.units[row]).tobytes(), row)
    return list(found.values())


def _are_families(families: UnitFamilies, rows: list[Ids]) -> bool:
    """Whether each of ``rows`` is a family of its own."""
    numbers = [np.unique(families.family_of[families.units[row]]) for row in rows]
    return all(len(own) == 1 for own in numbers) and len(np.unique(np.concatenate(numbers))) == len(rows)


def _unit_families(trace: Trace) -> UnitFamilies:
    units = trace.channel_ids.units()
    places = [(name, dim) for name, labels in trace.labels.items() for dim, ids in enumerate(labels) if ids is not None]
    labels = [*(trace.labels[name][dim] for name, dim in places), *trace.pieces.values()]
    family_of = np.full(trace.channel_ids.count, -1, dtype=np.int64)
    if not places:
        return UnitFamilies(units, places, [], family_of)
    owner = np.concatenate([units[ids] for ids in labels])  # type: ignore[index]
    place = np.repeat(np.arange(len(labels)), [len(ids) for ids in labels])  # type: ignore[arg-type]
    keys = np.sort(owner * len(labels) + place, kind="stable")  # much is sorted already, which a stable sort exploits
    distinct = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    counts = np.diff(np.r_[distinct, keys.size])
    owner, place = np.divmod(keys[distinct], len(labels))
    starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    sums = np.add.reduceat(_hashed(place, counts), starts)
    _, first, family = np.unique(sums, return_index=True, return_inverse=True)
    stops = np.r_[starts[1:], owner.size]
    signatures = [
        tuple(zip(place[a:b].tolist(), counts[a:b].tolist(), strict=True))
        for a, b in zip(starts[first], stops[first], strict=True)
    ]
    members = np.split(owner[starts][np.argsort(family, kind="stable")], np.cumsum(np.bincount(family.ravel()))[:-1])
    real = [(own, units) for own, units in zip(signatures, members, strict=True) if own[0][0] < len(places)]
    families = sorted(real, key=lambda entry: entry[0])
    for number, (_, own) in enumerate(families):
        family_of[own] = number
    return UnitFamilies(units, places, families, family_of)


def _hashed(place: Ids, counts: Ids) -> Ids:
    """A 64-bit hash of each (place, count) by splitmix64; signatures are compared by the sum of their hashes."""
    z = (place.astype(np.uint64) << np.uint64(32) | counts.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).view(np.int64)
