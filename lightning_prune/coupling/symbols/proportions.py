"""The factors that a tensor is proportional to, and the weights that can compensate for a changed scalar.

Every tensor of a pass is proportional to a product of powers of rows of weights and of scalars. At an operation that is
not homogeneous, and at the output of the network, this product must keep its value. Rows of a weight can compensate for
the change of a scalar if they are a factor of the same products as the scalar, to the same relative power, and of no
others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

import numpy as np

from lightning_prune.coupling.symbols.channel_ids import Ids
from lightning_prune.coupling.symbols.constants import Constants


@dataclass(frozen=True, eq=False)
class Proportion:
    """Rows of a weight that a tensor is proportional to.

    Attributes:
        tensors: Names of the weight, and of the bias that is added to its outputs, with the same rows.
        dim: Dimension of the weight along which the rows lie.
        ids: Channel ids of these rows in the weight.
        start: Channel id of the first row of the weight.
        power: The exponent of the rows.
    """

    tensors: tuple[str, ...]
    dim: int
    ids: Ids
    start: int
    power: int = 1

    @property
    def key(self) -> tuple[str, int]:
        """The weight and the dimension."""
        return self.tensors[0], self.dim

    @property
    def rows(self) -> Ids:
        """Indices of the rows in the weight."""
        indices: Ids = self.ids - self.start
        return indices

    def same_power_of(self, other: Proportion) -> bool:
        """Whether ``other`` is the same power of rows of the same tensors."""
        return (self.tensors, self.dim, self.power) == (other.tensors, other.dim, other.power)

    def is_within(self, other: Proportion) -> bool:
        """Whether all of its tensors are tensors of ``other``."""
        return self.key == other.key and set(self.tensors) <= set(other.tensors)

    def union(self, other: Proportion) -> Proportion:
        """The rows of both."""
        return self if self.ids is other.ids else replace(self, ids=np.union1d(self.ids, other.ids))


@dataclass(frozen=True, eq=False)
class Factors:
    """Everything that a tensor is proportional to.

    Attributes:
        proportions: Rows of weights.
        scalars: Number of a scalar -> its exponent.
    """

    proportions: tuple[Proportion, ...] = ()
    scalars: Mapping[int, int] = field(default_factory=dict)

    @property
    def single_weight(self) -> Proportion | None:
        """The rows of a single weight that are the only factor, None where there are other factors."""
        if len(self.proportions) != 1 or self.scalars:
            return None
        (rows,) = self.proportions
        return rows if rows.power == len(rows.tensors) == 1 else None

    def times(self, other: Factors, sign: int = 1) -> Factors:
        """The factors of a product, or of a quotient for ``sign=-1``."""
        proportions = list(self.proportions)
        for added in other.proportions:
            power = sign * added.power
            same = (own.key == added.key and same_rows(own.ids, added.ids) for own in proportions)
            at = next((n for n, is_same in enumerate(same) if is_same), None)
            if at is None:
                proportions.append(replace(added, power=power))
            else:
                proportions[at] = replace(proportions[at], power=proportions[at].power + power)
        scalars = dict(self.scalars)
        for number, times in other.scalars.items():
            scalars[number] = scalars.get(number, 0) + sign * times
        kept = tuple(rows for rows in proportions if rows.power)
        return Factors(kept, {number: times for number, times in scalars.items() if times})

    def merged_with(self, other: Factors | None) -> Factors | None:
        """The factors of a sum or concatenation of two tensors; None where the two change differently."""
        if other is None or self.scalars != other.scalars or len(self.proportions) != len(other.proportions):
            return None
        pairs = list(zip(self.proportions, other.proportions, strict=True))
        if not all(own.same_power_of(theirs) for own, theirs in pairs):
            return None
        return Factors(tuple(own.union(theirs) for own, theirs in pairs), self.scalars)

    def power_of(self, rows: Proportion) -> int | None:
        """The exponent of ``rows``, None where only some of them are a factor, or along another dimension."""
        power = 0
        for own in self.proportions:
            if set(own.tensors).isdisjoint(rows.tensors):
                continue
            inside = np.isin(own.rows, rows.rows)
            other_dim = own.tensors[0] == rows.tensors[0] and own.dim != rows.dim
            if other_dim or (inside.any() and not (inside.all() and own.is_within(rows))):
                return None
            power += own.power if inside.any() else 0
        return power


def same_rows(some: Ids, others: Ids) -> bool:
    """Whether two arrays hold the same ids, in any order."""
    if some is others or np.array_equal(some, others):
        return True
    return some.size == others.size and np.array_equal(np.sort(some), np.sort(others))


@dataclass(frozen=True, eq=False)
class Scalar:
    """A scalar that a tensor was multiplied by.

    Attributes:
        number: Its position among the scalars of the trace.
        value: The factor.
        widths: Ids of the channels that the tensor carries or was summed over.
        where: Qualified name of the module whose forward multiplies.
        run: Number of the pass.
        scalars: All scalars of the trace.
    """

    number: int
    value: float
    widths: Ids
    where: str
    run: int
    scalars: Scalars = field(repr=False)

    @cached_property
    def compensating_rows(self) -> Proportion | None:
        """The rows that can compensate for a change, None where none can; valid once all passes have run."""
        fixed = [factors for factors, run in self.scalars.fixed if run == self.run]
        with_scalar = [factors for factors in fixed if self.number in factors.scalars]
        for rows in _candidates(with_scalar):
            power = self._power_of(rows, fixed)
            if power:
                return replace(rows, power=power)
        return None

    def _power_of(self, rows: Proportion, fixed: Iterable[Factors]) -> int | None:
        """The exponent of ``rows`` relative to the scalar's, None where it is not the same in all products."""
        found = set()
        for factors in fixed:
            power, times = factors.power_of(rows), factors.scalars.get(self.number, 0)
            if power is None or bool(power) != bool(times) or (times and power % times):
                return None
            if times:
                found.add(power // times)
        return found.pop() if len(found) == 1 else None


def _candidates(products: list[Factors]) -> Iterator[Proportion]:
    """For each weight, all its rows that are factors of ``products``; then parts of them, such as keys alone."""
    first = products[0].proportions if products else ()
    for key in dict.fromkeys(rows.key for rows in first):
        union = _union(rows for factors in products for rows in factors.proportions if rows.key == key)
        if union is not None:
            yield union
    yield from first


def _union(proportions: Iterable[Proportion]) -> Proportion | None:
    first, *others = proportions
    if any(other.tensors != first.tensors for other in others):
        return None
    return reduce(Proportion.union, others, first)


@dataclass
class Scalars:
    """The scalars and constants that the passes of one trace have recorded.

    Attributes:
        found: Every scalar, in the order of the passes.
        fixed: Factors of tensors whose values must not change, with the number of the pass.
        runs: Number of passes.
        constants: Other numbers that the first pass computes with, and the channels that they are combined with.
    """

    found: list[Scalar] = field(default_factory=list)
    fixed: list[tuple[Factors, int]] = field(default_factory=list)
    runs: int = 0
    constants: list[tuple[Constants, Ids]] = field(default_factory=list)
