"""Slots: one id for every index of every dimension of every tensor, and which of them go together.

Ties are only recorded while a network is traced; they are resolved once, at the end, by a vectorised
connected-components pass, so that wide layers cost no Python loop.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Reason = str | Callable[[Ids], str]  # a sentence, or what makes one for the channels that it is about

FIXED = -1  # an index that belongs to no parameter: padding, a constant, a batch entry


class Slots:
    """Slot ids, the ties between them, and the reasons why some must stay."""

    def __init__(self) -> None:
        self.count = 0
        self._ties: list[tuple[Ids, Ids]] = []
        self._frozen: list[tuple[Ids, str]] = []
        self._inexact: list[tuple[Ids, str]] = []
        self._grouped: list[Ids] = []
        self._leaky = np.zeros(1024, dtype=np.bool_)

    def new(self, size: int) -> Ids:
        """Fresh ids for one dimension of ``size`` indices."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def tie(self, a: Ids, b: Ids, reason: Reason) -> None:
        """Say that ``a[i]`` and ``b[i]`` are removed together; a slot tied to ``FIXED`` must stay."""
        if (a | b).min(initial=0) > FIXED:
            self._ties.append((a, b))
            return
        known = (a != FIXED) & (b != FIXED)
        self._ties.append((a[known], b[known]))
        self.freeze(np.concatenate([a[~known], b[~known]]), reason)

    def tie_all(self, ids: Ids) -> None:
        """Say that all of ``ids`` are removed together."""
        known = ids[ids != FIXED]
        self._ties.append((known[:-1], known[1:]))

    def freeze(self, ids: Ids, reason: Reason) -> None:
        """Say that none of ``ids`` can be removed, and why."""
        known = ids[ids != FIXED]
        if known.size:
            self._frozen.append((known, reason if isinstance(reason, str) else reason(ids)))

    def mark_inexact(self, ids: Ids, reason: str) -> None:
        """Say that removing ``ids`` is possible but not equal to masking them, and why."""
        ids = ids[ids != FIXED]
        if ids.size:
            self._inexact.append((ids, reason))

    def mark_grouped(self, ids: Ids) -> None:
        """Say that ``ids`` are the inputs within a group of a convolution, which one alone would make depthwise."""
        self._grouped.append(ids[ids != FIXED])

    def mark_leaky(self, ids: Ids) -> None:
        """Say that the channels ``ids`` are not 0 when they are masked."""
        if self.count >= len(self._leaky):
            self._leaky = np.concatenate([self._leaky, np.zeros(2 * self.count, dtype=np.bool_)])
        self._leaky[ids] = True

    def any_leaky(self, ids: Ids) -> bool:
        """Whether any of the channels ``ids`` is not 0 when it is masked."""
        within = ids if self.count < len(self._leaky) else ids[ids < len(self._leaky)]
        return bool(self._leaky[within].any())

    def units(self) -> Ids:
        """The unit of every slot, as the lowest slot id in it; shape ``(count,)``."""
        pairs = self._ties or [(np.empty(0, np.int64),) * 2]
        return _components(self.count, np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]))

    def frozen_units(self, units: Ids) -> Reasons:
        """Why units cannot be removed."""
        return Reasons(self._frozen, units)

    def inexact_units(self, units: Ids) -> Reasons:
        """Why removing units is not equal to masking them."""
        return Reasons(self._inexact, units)

    def grouped_units(self, units: Ids) -> set[int]:
        """Units of which at least two have to stay."""
        return {unit for ids in self._grouped for unit in units[ids].tolist()}


class Reasons:
    """The first of the reasons given for each unit."""

    def __init__(self, marks: list[tuple[Ids, str]], units: Ids) -> None:
        self._marks = marks
        self._first = np.full(len(units), -1, dtype=np.int64)
        for number in reversed(range(len(marks))):
            self._first[units[marks[number][0]]] = number

    def known(self, units: Ids) -> npt.NDArray[np.bool_]:
        """Which of ``units`` have a reason."""
        found: npt.NDArray[np.bool_] = self._first[units] >= 0
        return found

    def of(self, unit: int) -> str:
        """The reason of a unit that has one."""
        return self._marks[self._first[unit]][1]


def _components(count: int, a: Ids, b: Ids) -> Ids:
    """Connected components of the graph with edges ``(a[i], b[i])``: the lowest node of each node's component."""
    parent = np.arange(count, dtype=np.int64)
    while True:
        root_a, root_b = parent[a], parent[b]
        apart = root_a != root_b
        if not apart.any():
            return parent
        a, b = a[apart], b[apart]
        low, high = np.minimum(root_a, root_b)[apart], np.maximum(root_a, root_b)[apart]
        np.minimum.at(parent, high, low)
        while not np.array_equal(parent, shortcut := parent[parent]):
            parent = shortcut
