"""Channel space: the units of channels that a budget can remove, ranked and with their costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.budgets.spaces.candidates import Candidate
from lightning_prune.budgets.spaces.dense_reference import DenseReference
from lightning_prune.budgets.spaces.latency_table import Conditions, LatencyTable
from lightning_prune.budgets.spaces.ranking import rank_steps
from lightning_prune.coupling.groups import Coupling
from lightning_prune.granularity import Ranking

State = Callable[[Mapping[str, Tensor]], Mapping[str, Any]]
Timed = Callable[[Mapping[str, Tensor], Conditions], float]


@dataclass(frozen=True)
class ChannelSpace:
    """The units of channels that a budget can remove, ranked by their scores.

    Groups that are pruned only together form one candidate. Its steps are ranked among the units of the other groups,
    each step as one unit, and all of its groups keep the units of the same number of steps.

    Attributes:
        coupling: Dependency groups of the network, and their costs.
        scores: Group name -> scores, shape (units,); either all groups of a bundle or none.
        dense: Size of the dense network.
        round_to: The channels kept in a group are a multiple of this number, if the group has as many.
        min_width: Minimum number of channels of a group, if the group has as many.
        ranking: ``"global"``: by score. ``"isomorphic"``: by score within each class of ``dense.classes``, where every
            class loses the same share of the units it had when dense.
        state: Removed units (group name -> bool tensor, as of ``lowest``) -> state dict of the network without them,
            for budgets that depend on values.
        tables: Latency tables, for budgets that depend on latency.
        timed: Removed units and conditions -> measured milliseconds of a pass without them; None if only the table is
            available.
    """

    coupling: Coupling
    scores: Mapping[str, Tensor]
    dense: DenseReference
    round_to: int = 1
    min_width: int = 1
    ranking: Ranking = "global"
    state: State = dict
    tables: Mapping[Conditions, LatencyTable] = field(default_factory=dict)
    timed: Timed | None = None

    @cached_property
    def now(self) -> dict[str, int]:
        """Group name -> number of units it has."""
        return {name: len(scores) for name, scores in self.scores.items()}

    @cached_property
    def dense_units(self) -> dict[str, int]:
        """Group name -> number of units it had when the network was dense."""
        return {name: self.dense.units.get(name, now) for name, now in self.now.items()}

    @cached_property
    def exhausted(self) -> dict[str, int]:
        """Group name -> units it had when dense, of groups whose last units remain, which cannot be removed."""
        groups = self.coupling.groups
        spent: set[str] = set()
        for bundle in self.coupling.bundles:
            if not bundle.quantum.keys() <= groups.keys():
                spent.update(bundle.quantum)
        return {name: units for name, units in self.dense.units.items() if name not in groups or name in spent}

    @cached_property
    def last(self) -> dict[str, int]:
        """Group name -> fewest possible units regardless of the limits; of exhausted groups as well."""
        return {name: self.dense.quantum.get(name, 1) for name in (*self.now, *self.exhausted)}

    @cached_property
    def candidates(self) -> list[Candidate]:
        """The groups and bundles, in the order of the groups."""
        parts = self.coupling.shrinking_together(self.scores.keys())
        return [Candidate.of(self.coupling, part, self.now, self.round_to, self.min_width) for part in parts]

    @cached_property
    def floor(self) -> dict[str, int]:
        """Group name -> fewest units it can keep within the limits."""
        return self._widths([candidate.floor for candidate in self.candidates])

    @cached_property
    def removable(self) -> int:
        """Total number of units that can be removed."""
        return sum(self.now.values()) - sum(self.floor.values())

    @property
    def steps(self) -> int:
        """Number of ranked steps: one for each removable unit of a single group or quantum of a bundle."""
        return len(self._ranked[0])

    @property
    def limits(self) -> dict[str, int]:
        """Limits of the widths, by the name of the argument."""
        limits = {"round_to": self.round_to, "min_width": self.min_width}
        return {name: value for name, value in limits.items() if value > 1}

    @property
    def at_minimum(self) -> dict[str, str]:
        """Group name -> why none of its units can be removed, of groups at their minimum width."""
        return {name: self._limit(name) for name, now in self.now.items() if self.floor[name] == now}

    def rounded(self, name: str, units: int | float) -> int:
        """The nearest number of units that can be kept, from the minimum to all."""
        candidate = self.candidates[self._number[name]]
        return candidate.nearest(units / candidate.quantum[name]) * candidate.quantum[name]

    def keep_share(self, removed: float) -> dict[str, int]:
        """Units kept where every group loses the share ``removed`` of the units it had when dense."""
        return self.keep_shares(dict.fromkeys(self.now, removed))

    def keep_shares(self, removed: Mapping[str, float]) -> dict[str, int]:
        """Units kept where every group loses its own share; the groups of a bundle lose the share of the first."""
        kept = []
        for candidate in self.candidates:
            name, units = next(iter(candidate.quantum.items()))
            wanted = self.dense_units[name] / units * (1 - removed[name])
            kept.append(candidate.now if wanted >= candidate.now else candidate.nearest(wanted))
        return self._widths(kept)

    def keep_from(self, threshold: float) -> dict[str, int]:
        """Units kept where every step that scores below ``threshold`` is removed."""
        least = torch.tensor(threshold, dtype=torch.float32)  # as exact as the scores
        lost = [int((candidate.step_scores(self.scores) < least).sum()) for candidate in self.candidates]
        return self._shortened(lost, False)

    def keep_each(self, count: int) -> dict[str, int]:
        """Units kept where every group loses ``count`` units; in a bundle none loses more."""
        return self._shortened([count // max(candidate.quantum.values()) for candidate in self.candidates], True)

    def keep_after(self, count: int, at_most: bool = False) -> dict[str, int]:
        """Units kept after the lowest-ranked steps of all groups are removed, with ``count`` units or fewer.

        Args:
            count: Number of units to remove.
            at_most: Whether a bundle that cannot have exactly its width keeps more units rather than fewer.
        """
        return self._keep(int(torch.searchsorted(self._ranked[1], count, right=True)), at_most)

    def keep_after_steps(self, steps: int) -> dict[str, int]:
        """Units kept after the lowest-ranked ``steps`` of all groups are removed."""
        return self._keep(steps, False)

    def params(self, kept: Mapping[str, int]) -> float:
        """Number of parameters of the network with these units kept."""
        return self.coupling.params_after(self._removed(kept))

    def macs(self, kept: Mapping[str, int]) -> float:
        """Multiply-accumulates for one example with these units kept."""
        return self.coupling.macs_after(self._removed(kept))

    def estimated_ms(self, kept: Mapping[str, int], conditions: Conditions) -> float:
        """Milliseconds of a pass with these units kept, estimated by the table."""
        return self.tables[conditions].ms(self.coupling, self._removed(kept))

    def measured_ms(self, kept: Mapping[str, int], conditions: Conditions) -> float:
        """Milliseconds of a pass with these units kept, measured if possible, otherwise estimated."""
        if self.timed is None:
            return self.estimated_ms(kept, conditions)
        return self.timed(self.lowest(kept), conditions)

    def lowest(self, kept: Mapping[str, int]) -> dict[str, Tensor]:
        """Group name -> bool tensor (units,), True for the lowest-scored units beyond those kept."""
        removed = {}
        for name, scores in self.scores.items():
            lowest = np.zeros(len(scores), dtype=np.bool_)
            lowest[np.argsort(scores.numpy(), kind="stable")[: self.now[name] - kept[name]]] = True
            removed[name] = torch.from_numpy(lowest)
        return removed

    @cached_property
    def _number(self) -> dict[str, int]:
        """Group name -> place of its candidate."""
        return {name: place for place, candidate in enumerate(self.candidates) for name in candidate.quantum}

    def _widths(self, kept: list[int]) -> dict[str, int]:
        """Group name -> units, from the steps that each candidate keeps."""
        return {name: kept[n] * self.candidates[n].quantum[name] for name, n in self._number.items()}

    def _keep(self, steps: int, at_most: bool) -> dict[str, int]:
        return self._shortened(
            torch.bincount(self._ranked[0][:steps], minlength=len(self.candidates)).tolist(), at_most
        )

    def _shortened(self, lost: list[int], at_most: bool) -> dict[str, int]:
        kept = []
        for candidate, steps in zip(self.candidates, lost, strict=True):
            rounded = candidate.no_fewer if at_most and candidate.bundled else candidate.nearest
            kept.append(rounded(candidate.now - steps) if steps else candidate.now)
        return self._widths(kept)

    @cached_property
    def _ranked(self) -> tuple[Tensor, Tensor]:
        """Candidate number of every removable step, lowest rank first, and the units removed after each."""
        scores = [c.step_scores(self.scores)[: c.now - c.floor] for c in self.candidates]
        units = [sum(candidate.quantum.values()) for candidate in self.candidates]
        classes = [self._class_of(next(iter(candidate.quantum))) for candidate in self.candidates]
        total: Counter[str] = Counter()
        removed: Counter[str] = Counter()
        for name, dense in {**self.dense_units, **self.exhausted}.items():
            total[self._class_of(name)] += dense
            removed[self._class_of(name)] += dense - self.now.get(name, self.last[name])
        return rank_steps(scores, units, classes, total, removed)

    def _class_of(self, name: str) -> str:
        return "" if self.ranking == "global" else self.dense.classes.get(name, name)

    def _limit(self, name: str) -> str:
        group, candidate = self.coupling.groups[name], self.candidates[self._number[name]]
        if candidate.now == 1:
            return "only its last units remain"
        if self.now[name] <= group.min_units:
            return f"with fewer than {group.min_units} units a grouped convolution would become depthwise"
        limits = " and ".join(f"{name}={value}" for name, value in self.limits.items())
        if candidate.bundled:
            return f"{limits}: not all groups that are pruned together have a smaller width that is allowed"
        channels = self.now[name] * group.channels_per_unit
        return f"{limits}: its {channels} channels are the smallest width that is allowed"

    def _removed(self, kept: Mapping[str, int]) -> dict[str, int]:
        return {name: now - kept[name] for name, now in self.now.items()}
