"""What a tensor is proportional to, and which weights can so take up the change of a scalar.

Every tensor of a pass is a product of powers of what it is proportional to: rows of weights, and scalars. Where it
reaches an operation that is not homogeneous, and at the end of the network, this product has to stay what it is. Rows
can take up a change of a scalar if they are a factor wherever it is one, to the same relative power, and nowhere else.
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
        tensors: Names of the weight, and of the bias that is added to what it makes, at the same rows.
        dim: Dimension of the weight along which the rows lie.
        ids: Slots of these rows in the weight.
        start: Slot of its first row.
        power: How often they are a factor.
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
        """Where the rows are in the weight."""
        places: Ids = self.ids - self.start
        return places

    def alike(self, other: Proportion) -> bool:
        """Whether ``other`` is the same power of rows of the same tensors."""
        return (self.tensors, self.dim, self.power) == (other.tensors, other.dim, other.power)

    def within(self, other: Proportion) -> bool:
        """Whether all of its tensors are those of ``other``."""
        return self.key == other.key and set(self.tensors) <= set(other.tensors)

    def united(self, other: Proportion) -> Proportion:
        """The rows of both."""
        return self if self.ids is other.ids else replace(self, ids=np.union1d(self.ids, other.ids))


@dataclass(frozen=True, eq=False)
class Factors:
    """Everything that a tensor is proportional to.

    Attributes:
        origins: Rows of weights.
        scalars: Number of a scalar -> how often it is a factor.
    """

    origins: tuple[Proportion, ...] = ()
    scalars: Mapping[int, int] = field(default_factory=dict)

    @property
    def weight(self) -> Proportion | None:
        """The one weight that these are the rows of, None where there is more to them."""
        alone = len(self.origins) == 1 and not self.scalars
        return self.origins[0] if alone and self.origins[0].power == len(self.origins[0].tensors) == 1 else None

    def times(self, other: Factors, sign: int = 1) -> Factors:
        """Those of a product, or of a quotient for the sign -1."""
        origins = list(self.origins)
        for added in other.origins:
            power = sign * added.power
            same = (own.key == added.key and same_rows(own.ids, added.ids) for own in origins)
            at = next((n for n, alike in enumerate(same) if alike), None)
            if at is None:
                origins.append(replace(added, power=power))
            else:
                origins[at] = replace(origins[at], power=origins[at].power + power)
        scalars = dict(self.scalars)
        for number, times in other.scalars.items():
            scalars[number] = scalars.get(number, 0) + sign * times
        return Factors(tuple(origin for origin in origins if origin.power), {n: k for n, k in scalars.items() if k})

    def beside(self, other: Factors | None) -> Factors | None:
        """Those of a sum, or of tensors side by side; None where the two do not change alike."""
        if other is None or self.scalars != other.scalars or len(self.origins) != len(other.origins):
            return None
        pairs = list(zip(self.origins, other.origins, strict=True))
        if not all(own.alike(its) for own, its in pairs):
            return None
        return Factors(tuple(own.united(its) for own, its in pairs), self.scalars)

    def power_of(self, origin: Proportion) -> int | None:
        """How often ``origin`` is a factor, None where only a part of it is, or it is one in another way."""
        power = 0
        for own in self.origins:
            if set(own.tensors).isdisjoint(origin.tensors):
                continue
            inside, turned = (
                np.isin(own.rows, origin.rows),
                own.tensors[0] == origin.tensors[0] and own.dim != origin.dim,
            )
            if turned or (inside.any() and not (inside.all() and own.within(origin))):
                return None
            power += own.power if inside.any() else 0
        return power


def same_rows(some: Ids, others: Ids) -> bool:
    """Whether two arrays hold the same, in any order."""
    if some is others or np.array_equal(some, others):
        return True
    return some.size == others.size and np.array_equal(np.sort(some), np.sort(others))


@dataclass(frozen=True, eq=False)
class Scalar:
    """A scalar that a tensor was multiplied by.

    Attributes:
        number: Its position among those of the trace.
        value: The factor.
        widths: Slots of channels that the tensor carries or was summed over.
        where: Qualified name of the module whose forward multiplies.
        run: Number of the pass.
        scalars: All of the trace.
    """

    number: int
    value: float
    widths: Ids
    where: str
    run: int
    scalars: Scalars = field(repr=False)

    @cached_property
    def origin(self) -> Proportion | None:
        """The rows that can take up a change, None where none can; to be asked when the passes are over."""
        leaks = [factors for factors, run in self.scalars.leaks if run == self.run]
        met = [factors for factors in leaks if self.number in factors.scalars]
        for origin in _candidates(met):
            power = self._power_of(origin, leaks)
            if power:
                return replace(origin, power=power)
        return None

    def _power_of(self, origin: Proportion, leaks: Iterable[Factors]) -> int | None:
        """To which power of ``origin`` the scalar is proportional, None where that is not so everywhere."""
        found = set()
        for factors in leaks:
            power, times = factors.power_of(origin), factors.scalars.get(self.number, 0)
            if power is None or bool(power) != bool(times) or (times and power % times):
                return None
            if times:
                found.add(power // times)
        return found.pop() if len(found) == 1 else None


def _candidates(met: list[Factors]) -> Iterator[Proportion]:
    """All rows of a weight that are factors of ``met``, weight by weight; then parts of them, such as keys alone."""
    first = met[0].origins if met else ()
    for key in dict.fromkeys(origin.key for origin in first):
        whole = _united(origin for factors in met for origin in factors.origins if origin.key == key)
        if whole is not None:
            yield whole
    yield from first


def _united(origins: Iterable[Proportion]) -> Proportion | None:
    first, *others = origins
    if any(other.tensors != first.tensors for other in others):
        return None
    return reduce(Proportion.united, others, first)


@dataclass
class Scalars:
    """What the passes of one trace have found.

    Attributes:
        found: Every scalar, in the order of the passes.
        leaks: What has to stay what it is, and the number of the pass.
        runs: Number of passes.
        constants: Other numbers that the first pass computes with, and the channels that they meet.
    """

    found: list[Scalar] = field(default_factory=list)
    leaks: list[tuple[Factors, int]] = field(default_factory=list)
    runs: int = 0
    constants: list[tuple[Constants, Ids]] = field(default_factory=list)
