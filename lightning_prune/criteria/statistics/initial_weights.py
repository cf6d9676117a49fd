"""Copies of the initial weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import nn

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.statistics.weight_gradients import ParameterStatistics
from lightning_prune.surgery.plan import Plan


class InitialWeights(ParameterStatistics):
    """Copies of the parameters from when they were first observed, on the CPU; kept through pruning events."""

    lasting = True
    looks_at = "weights from before and after a training"

    def attach(self, module: nn.Module, groups: Iterable[Group] = (), parameters: Collection[str] = ()) -> None:
        """Copy the parameters without a copy; a resumed training has the copies of its checkpoint."""
        super().attach(module, groups, parameters)
        for name, parameter in self._parameters.items():
            if name not in self.totals:
                self.totals[name] = parameter.detach().to("cpu", torch.float32, copy=True)
        self.steps = 1  # scores are available from the start

    def unseen(self) -> list[str]:
        """Empty: the copies are complete from the start."""
        return []

    def follow(self, plan: Plan) -> None:
        """Slice the copies as the parameters were sliced, and scale them by the same factors."""
        super().follow(plan)
        for name in plan.scales.keys() & self.totals.keys():
            for dim, factors in plan.scales[name].items():
                shape = [-1 if d == dim else 1 for d in range(self.totals[name].dim())]
                self.totals[name] = self.totals[name] * factors.to(self.totals[name]).view(shape)
