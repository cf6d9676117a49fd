"""Channel ids: one number for every index of every dimension of every parameter and buffer, and the ties between them.

Ties are only recorded while a network is traced. They are resolved once, at the end, by a vectorized
connected-components pass, so that wide layers cost no Python loop.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Reason = str | Callable[[Ids], str]  # a sentence, or a function that makes one for the channels concerned

NO_CHANNEL = -1  # an index that belongs to no parameter: padding, a constant, a batch entry


class ChannelIds:
    """Channel ids, the ties between them, and the reasons why some of them are frozen.

    Attributes:
        count: Number of ids that are in use.
    """

    def __init__(self) -> None:
        self.count = 0
        self._ties: list[tuple[Ids, Ids]] = []
        self._frozen: list[tuple[Ids, str]] = []
        self._inexact: list[tuple[Ids, str]] = []
        self._grouped: list[Ids] = []
        self._nonzero_masked = np.zeros(1024, dtype=np.bool_)

    def new(self, size: int) -> Ids:
        """New ids for one dimension of ``size`` indices."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def tie(self, a: Ids, b: Ids, reason: Reason) -> None:
        """Record that ``a[i]`` and ``b[i]`` are removed together; an id tied to ``NO_CHANNEL`` is frozen."""
        if (a | b).min(initial=0) > NO_CHANNEL:
            self._ties.append((a, b))
            return
        known = (a != NO_CHANNEL) & (b != NO_CHANNEL)
        self._ties.append((a[known], b[known]))
        self.freeze(np.concatenate([a[~known], b[~known]]), reason)

    def tie_all(self, ids: Ids) -> None:
        """Record that all of ``ids`` are removed together."""
        known = ids[ids != NO_CHANNEL]
        self._ties.append((known[:-1], known[1:]))

    def freeze(self, ids: Ids, reason: Reason) -> None:
        """Record that none of ``ids`` can be removed, and the reason."""
        known = ids[ids != NO_CHANNEL]
        if known.size:
            self._frozen.append((known, reason if isinstance(reason, str) else reason(ids)))

    def mark_inexact(self, ids: Ids, reason: str) -> None:
        """Record that the removal of ``ids`` is possible but not equal to masking them, and the reason."""
        ids = ids[ids != NO_CHANNEL]
        if ids.size:
            self._inexact.append((ids, reason))

    def mark_grouped(self, ids: Ids) -> None:
        """Record that ``ids`` are the inputs within a group of a convolution: with only one it would be depthwise."""
        self._grouped.append(ids[ids != NO_CHANNEL])

    def mark_nonzero_masked(self, ids: Ids) -> None:
        """Record that the channels ``ids`` are not 0 when they are masked."""
        if self.count >= len(self._nonzero_masked):
            self._nonzero_masked = np.concatenate([self._nonzero_masked, np.zeros(2 * self.count, dtype=np.bool_)])
        self._nonzero_masked[ids] = True

    def any_nonzero_masked(self, ids: Ids) -> bool:
        """Whether any of the channels ``ids`` is not 0 when it is masked."""
        within = ids if self.count < len(self._nonzero_masked) else ids[ids < len(self._nonzero_masked)]
        return bool(self._nonzero_masked[within].any())

    def units(self) -> Ids:
        """The unit of every id, named by the lowest id in it; shape ``(count,)``."""
        pairs = self._ties or [(np.empty(0, np.int64),) * 2]
        return _components(self.count, np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]))

    def frozen_units(self, units: Ids) -> Reasons:
        """The reasons why units cannot be removed."""
        return Reasons(self._frozen, units)

    def inexact_units(self, units: Ids) -> Reasons:
        """The reasons why the removal of units is not equal to masking them."""
        return Reasons(self._inexact, units)

    def grouped_conv_units(self, units: Ids) -> set[int]:
        """Units of which at least two must be kept, see ``mark_grouped``."""
        return {unit for ids in self._grouped for unit in units[ids].tolist()}


class Reasons:
    """The first of the reasons that were recorded for each unit.

    Args:
        marks: Channel ids with the reason recorded for them, in order.
        units: The unit of every channel id.
    """

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
