"""Weights as they were in the beginning."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import nn

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.statistics.weight_gradients import OfParameters
from lightning_prune.surgery.plan import Plan


class InitialWeights(OfParameters):
    """The parameters as they were when they were first observed, on the CPU; events leave them standing."""

    lasting = True
    looks_at = "weights from before and after a training"

    def attach(self, module: nn.Module, groups: Iterable[Group] = (), parameters: Collection[str] = ()) -> None:
        """Keep copies of the parameters of which there is none yet; a resumed training has them."""
        super().attach(module, groups, parameters)
        for name, parameter in self._parameters.items():
            if name not in self.totals:
                self.totals[name] = parameter.detach().to("cpu", torch.float32, copy=True)
        self.steps = 1  # there is nothing to wait for

    def unseen(self) -> list[str]:
        """Nothing: all is there from the beginning."""
        return []

    def follow(self, plan: Plan) -> None:
        """Cut the copies as the parameters were cut, and make up for changed scalars as they did."""
        super().follow(plan)
        for name in plan.scales.keys() & self.totals.keys():
            for dim, factors in plan.scales[name].items():
                shape = [-1 if d == dim else 1 for d in range(self.totals[name].dim())]
                self.totals[name] = self.totals[name] * factors.to(self.totals[name]).view(shape)
