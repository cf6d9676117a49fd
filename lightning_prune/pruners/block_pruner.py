"""Block pruner: scores the blocks of a network and removes the lowest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.budgets.budget import BLOCK_BUDGETS, Budget
from lightning_prune.budgets.spaces.block_space import BlockSpace
from lightning_prune.budgets.spaces.dense_reference import DenseReference
from lightning_prune.criteria.criterion import Criterion
from lightning_prune.criteria.statistics.block_changes import BlockChanges
from lightning_prune.network.example_input import Example, without_garbage_collection
from lightning_prune.network.names import is_inside
from lightning_prune.network.size import Size, nonzero_in
from lightning_prune.network.tensors import named_tensors
from lightning_prune.pruners.pruner import Pruner, check_finite
from lightning_prune.pruners.removable_blocks import Removable, find_removable, why_it_fails
from lightning_prune.scope import Scope
from lightning_prune.surgery.apply import apply_plan
from lightning_prune.surgery.averaged_copies import with_averages
from lightning_prune.surgery.passthrough import identity_for
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report


class BlockPruner(Pruner):
    """Scores the blocks of a network and removes the lowest.

    Args:
        criterion: Saliency criterion that scores blocks.
        budget: Target size.
        scope: Modules that may be pruned.

    Attributes:
        dense: Size of the dense network, and the blocks that could be removed; None before ``prepare``.
        names: Names of the blocks that are ranked; known after ``prepare``.
        removed: Names of the blocks removed so far.
        blocked: Block name -> why the network fails without it.
    """

    def __init__(self, criterion: Criterion, budget: Budget, scope: Scope) -> None:
        super().__init__(criterion, budget, scope)
        if not criterion.scores_blocks:
            raise ValueError(
                f"criterion {criterion} does not score blocks; with Blocks() use Sensitivity, BlockInfluence or Random"
            )
        if not budget.blocks:
            raise ValueError(f"budget {budget} does not choose between blocks; with Blocks() use {BLOCK_BUDGETS}")
        if budget.per_layer and not type(budget).per_layer:  # the default of Ratio is True, and is ignored
            raise ValueError(
                f"budget {budget} prunes each layer by itself, but blocks are removed as a whole; use per_layer=False"
            )
        self.dense: DenseReference | None = None
        self.names: frozenset[str] = frozenset()
        self.removed: list[str] = []
        self.blocked: dict[str, str] = {}
        self._removable: tuple[Mapping[str, torch.Size], Removable] | None = None

    def prepare(self, model: nn.Module, example: Example | None, events: int | None = None) -> None:
        """Find the blocks that can be removed, check the budget, and start to gather statistics."""
        if self.dense is None:
            self.scope.check_patterns(model)
        removable = self._find(model, example)
        names, reasons = self.candidates(model, example)
        if self.dense is None and not names:
            raise ValueError(
                f"{self.scope} leaves no block in {type(model).__name__} that can be removed: "
                f"{dict(list(reasons.items())[:5]) or 'no module returns a tensor shaped like its input'}"
            )
        self.names = frozenset(names)
        if self.dense is None:
            self.dense = DenseReference(removable.whole.params, removable.whole.macs, dict.fromkeys(names, 1))
        self.budget.check_blocks(self._space(removable, names), None if events is None else events - self.event)
        if isinstance(self.statistics, BlockChanges):
            self.statistics.attach(model, blocks=names)

    @without_garbage_collection()
    def candidates(self, model: nn.Module, example: Example | None) -> tuple[list[str], dict[str, str]]:
        """Names of the blocks that can be removed, and why others cannot."""
        removable = self._find(model, example)
        if self.dense is None:
            return removable.within(self.scope, model)
        present = [name for name in self.dense.units if name not in self.blocked and name in removable.fits]
        changed = {name: why for name, why in removable.misfits.items() if name in self.dense.units}
        outside = {name: why for name, why in removable.frozen.items() if not is_inside(name, self.dense.units)}
        return present, {**outside, **changed, **self.blocked}

    def is_due(self, model: nn.Module, example: Example | None, fraction: float, budget: Budget | None = None) -> bool:
        """Whether an event at this ``fraction`` of the schedule would remove any block."""
        names, _ = self.candidates(model, example)
        return (budget or self.budget).remove_blocks(self._space(self._find(model, example), names), fraction) > 0

    def ablation_losses(
        self, model: nn.Module, example: Example | None, loss: Callable[[], Tensor]
    ) -> dict[str, Tensor]:
        """Losses without each block, for criteria that compare them: what ``plan`` takes as ``statistics``.

        Args:
            model: The network, or a copy of it.
            example: What its forward receives.
            loss: Evaluates ``model`` as it is; returns a scalar.

        Returns:
            Block name -> loss with the block replaced by an identity, and ``""`` -> loss with all blocks.
        """
        losses = {"": loss().detach().double().cpu()}
        for name in self.candidates(model, example)[0]:
            with skipping(model, name):
                losses[name] = loss().detach().double().cpu()
        return losses

    @without_garbage_collection()
    def plan(
        self,
        model: nn.Module,
        example: Example | None,
        fraction: float,
        *,
        budget: Budget | None = None,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> Report:
        """Score, choose the blocks, try the network without them, and report."""
        assert self.dense is not None, "prepare comes first"
        assert example is not None
        removable, scoring = self._find(model, example), self.scoring(model, example, statistics)
        target = budget or self.budget
        names, _ = self.candidates(model, example)
        due = target.remove_blocks(self._space(removable, names), fraction) > 0  # else there may be no statistics
        values = self.criterion.score_blocks(names, scoring) if due else torch.zeros(len(names))
        scores = {name: value.reshape(1) for name, value in zip(names, values, strict=True)}
        check_finite(self.criterion, scores)
        ranked = sorted(names, key=lambda name: float(scores[name]))  # stable: of equal scores the first is removed
        while True:
            ranked = [name for name in ranked if name not in self.blocked]
            chosen = ranked[: target.remove_blocks(self._space(removable, ranked), fraction)]
            failing = why_it_fails(model, example, chosen) if chosen else {}
            if not failing:
                break
            self.blocked.update(failing)
        plan = with_averages(Plan(removed_modules=tuple(sorted(chosen, key=names.index))), model)
        before, after = _sizes(model, plan, removable, chosen)
        return Report(
            plan=plan,
            before=before,
            after=after,
            sparsity=1 - after.params / self.dense.params,
            fraction=fraction,
            widths={name: (1, int(name not in chosen)) for name in names},
            scores=scores if due else {},
            frozen=self.candidates(model, example)[1],
        )

    def resized(self, size: Size) -> None:
        """Update the sparsity, which is that of the whole network, also after events of other pruners."""
        if self.dense is not None:
            self.sparsity = 1 - size.params / self.dense.params

    def _find(self, model: nn.Module, example: Example | None) -> Removable:
        """The modules that can be removed, determined again only when the tensors of ``model`` have changed."""
        if example is None:
            raise ValueError("blocks are found by observing a forward pass, which needs an example input")
        shapes = {name: tensor.shape for name, tensor in named_tensors(model)}
        if self._removable is None or self._removable[0] != shapes:
            self._removable = shapes, find_removable(model, example)
        return self._removable[1]

    def _space(self, removable: Removable, ranked: Sequence[str]) -> BlockSpace:
        """The blocks that can be removed, in this order."""
        assert self.dense is not None
        costs = [removable.fits[name] for name in ranked]
        return BlockSpace(
            dense=self.dense,
            params_now=removable.whole.params,
            macs_now=removable.whole.macs,
            params=[cost.params for cost in costs],
            macs=[cost.macs for cost in costs],
            removed=len(self.removed),
        )

    def _modify(self, model: nn.Module, report: Report, optimizers: list[Optimizer]) -> None:
        apply_plan(model, report.plan, optimizers)
        self.removed += [name for name, (_, kept) in report.widths.items() if not kept]

    def __getstate__(self) -> dict[str, Any]:
        """Without the removable modules, which are determined again."""
        return {**vars(self), "_removable": None}

    def state_dict(self) -> dict[str, Any]:
        """The common state, the size of the dense network, and the removed and blocked blocks."""
        dense = self.dense
        return {
            **super().state_dict(),
            "origin": None
            if dense is None
            else {"params": dense.params, "macs": dense.macs, "blocks": list(dense.units)},
            "removed": list(self.removed),
            "blocked": dict(self.blocked),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        super().load_state_dict(state)
        dense = state["origin"]
        if dense is not None:
            dense = DenseReference(dense["params"], dense["macs"], dict.fromkeys(dense["blocks"], 1))
        self.dense = dense
        self.removed, self.blocked = list(state["removed"]), dict(state["blocked"])


@contextmanager
def skipping(model: nn.Module, name: str) -> Any:
    """Context in which the module ``name`` is replaced by an identity."""
    path, _, key = name.rpartition(".")
    children = model.get_submodule(path)._modules
    block = model.get_submodule(name)
    children[key] = identity_for(block)
    try:
        yield
    finally:
        children[key] = block


def _sizes(model: nn.Module, plan: Plan, removable: Removable, chosen: Sequence[str]) -> tuple[Size, Size]:
    """Size of the network as it is, and after ``plan``, which removes the ``chosen`` blocks."""
    removed = {id(p) for name in plan.removed_modules for p in model.get_submodule(name).parameters()}
    nonzero = {id(p): nonzero_in([p.detach()]) for p in model.parameters()}
    macs = removable.whole.macs - sum(removable.fits[name].macs for name in chosen)
    kept = [p for p in model.parameters() if id(p) not in removed]
    return (
        Size(removable.whole.params, sum(nonzero.values()), removable.whole.macs),
        Size(sum(p.numel() for p in kept), sum(nonzero[id(p)] for p in kept), macs),
    )
