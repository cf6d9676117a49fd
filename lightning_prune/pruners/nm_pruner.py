"""N:M pruner: keeps N of every M consecutive weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import Tensor, nn

from lightning_prune.budgets.budget import Budget, BudgetError
from lightning_prune.budgets.spaces.weight_space import WeightSpace
from lightning_prune.criteria.criterion import Criterion, Scoring
from lightning_prune.granularity import NM
from lightning_prune.masks.n_of_m import fullest_block, kept_in_block, nm_mask, weight_layouts
from lightning_prune.pruners.mask_pruner import MaskPruner
from lightning_prune.scope import Scope
from lightning_prune.surgery.plan import Plan


class NMPruner(MaskPruner):
    """Keeps the N highest-scored weights in every block of M; layers without whole blocks stay dense.

    Args:
        granularity: N and M; with the fraction of the schedule, the weights kept in a block decrease from M to N.
        criterion: Saliency criterion that scores weights.
        budget: The sparsity of N and M as a budget.
        scope: Modules and parameters that may be pruned.
    """

    def __init__(self, granularity: NM, criterion: Criterion, budget: Budget, scope: Scope) -> None:
        super().__init__(criterion, budget, scope)
        self._n, self._m = granularity.n, granularity.m
        self._dims: dict[str, int] = {}

    def _covered(self, model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
        found = weight_layouts(model)
        self._dims = {name: layout.dim for name, layout in found.items()}
        covered: dict[str, nn.Parameter] = {}
        frozen: dict[str, str] = {}
        for name, parameter in self.scope.parameters(model).items():
            if name not in found:
                frozen[name] = "a vector has no input dimension"
            elif found[name].inputs % self._m:
                frozen[name] = f"its {found[name].inputs} inputs are not a multiple of {self._m}"
            else:
                covered[name] = parameter
        if not covered:
            raise BudgetError(
                f"NM({self._n}, {self._m}) fits no layer: {dict(list(frozen.items())[:5])}. Use a smaller m, "
                f"or a wider scope; where channels are removed as well, Channels(round_to={self._m})."
            )
        return covered, frozen

    def _check(self, space: WeightSpace, events: int | None) -> None:
        """Nothing to check: every block can be masked."""

    def _choose(self, space: WeightSpace, scoring: Scoring, budget: Budget, fraction: float) -> Mapping[str, Tensor]:
        keep = kept_in_block(self._n, self._m, fraction)
        return {
            name: nm_mask(space.scores[name], self.masks.get(name), self._m, keep, self._dims[name])
            for name in space.sizes
        }

    def follow(self, plan: Plan) -> None:
        """Slice the masks after channels were removed by ``plan``.

        Warns if removed inputs result in blocks with more than N weights.
        """
        before = {name: mask.shape for name, mask in self.masks.items()}
        super().follow(plan)
        keep = kept_in_block(self._n, self._m, self.fraction)
        broken = [
            name
            for name, mask in self.masks.items()
            if mask.shape != before[name] and fullest_block(mask, self._m, self._dims.get(name, 1)) > keep
        ]
        if broken:
            warnings.warn(
                f"channels were removed after NM({self._n}, {self._m}) had masked {broken[0]!r} (and "
                f"{len(broken) - 1} more): blocks there now keep more than {keep} of {self._m} weights. Start NM "
                "after the last channels are removed.",
                stacklevel=2,
            )
