"""Mask pruner: base class of the pruners that mask weights."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from lightning_prune.budgets.budget import Budget
from lightning_prune.budgets.spaces.weight_space import Chooser, WeightSpace
from lightning_prune.criteria.criterion import CannotScoreError, Criterion, Scoring
from lightning_prune.masks.enforcer import MaskEnforcer
from lightning_prune.masks.select import lowest_masks, pack, unpack
from lightning_prune.network.example_input import Example
from lightning_prune.network.sharded import full_tensor, reshard
from lightning_prune.network.size import measure, nonzero_in
from lightning_prune.pruners.pruner import Pruner, check_finite
from lightning_prune.scope import Scope
from lightning_prune.surgery.averaged_copies import with_averages
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.preview import state_after
from lightning_prune.surgery.report import Report


class MaskPruner(Pruner):
    """Base class of the pruners that mask weights.

    Args:
        criterion: Saliency criterion that scores weights.
        budget: Target size.
        scope: Modules and parameters that may be pruned.

    Attributes:
        masks: Parameter name -> bool mask of its shape on the CPU, True where the weight is kept.
    """

    def __init__(self, criterion: Criterion, budget: Budget, scope: Scope) -> None:
        super().__init__(criterion, budget, scope)
        if not criterion.scores_weights:
            raise ValueError(f"criterion {criterion} does not score weights; use Channels(), or another criterion")
        self.masks: dict[str, Tensor] = {}
        self._known_dense: set[str] = set()  # parameters in the scope of which a warning was given

    def prepare(self, model: nn.Module, example: Example | None, events: int | None = None) -> None:
        """Check that the scope and the budget fit the network."""
        parameters, frozen = self._covered(model)
        space = replace(self._space(model, parameters), left_out=frozen)
        self._check(space, None if events is None else events - self.event)
        scoring = self.scoring(model, example)
        for name in parameters:
            try:
                self.criterion.check_weights(name, scoring)
            except CannotScoreError as error:
                raise ValueError(f"criterion {self.criterion} cannot score {name!r}: {error}") from error
        if self.statistics is not None:
            self.statistics.attach(model, parameters=parameters.keys())
        if self.event > 0:  # the training that is resumed has warned already
            self._known_dense |= frozen.keys()
        self._warn_of_new(model, frozen)

    def observe(self, model: nn.Module) -> None:
        """Also gather statistics of weights that were frozen when training began."""
        if self.statistics is not None:
            self.statistics.attach(model, parameters=self._covered(model)[0].keys())

    def plan(
        self,
        model: nn.Module,
        example: Example | None,
        fraction: float,
        *,
        budget: Budget | None = None,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> Report:
        """Score, choose the masks, and report."""
        parameters, frozen = self._covered(model)
        self._warn_of_new(model, frozen)  # parameters that no longer fit after channels were removed
        scoring = self.scoring(model, example, statistics)
        space = self._space(model, parameters, ScoresOnDemand(self.criterion, scoring, list(parameters)))
        left_out = {
            name: self.masks[name] for name in frozen if name in self.masks
        }  # masked before, when their shapes fitted
        masks = {**left_out, **self._choose(space, scoring, budget or self.budget, fraction)}
        masked = {name: _hidden(mask) for name, mask in masks.items()}
        plan, before = with_averages(Plan(masks=masks), model), measure(model, example)
        return Report(
            plan=plan,
            before=before,
            after=replace(before, nonzero=_nonzero_under(plan.masks, model)),
            sparsity=sum(masked.values()) / sum(mask.numel() for mask in masks.values()),
            fraction=fraction,
            widths={n: (s - space.masked[n], s - masked[n]) for n, s in space.sizes.items()},
            frozen=frozen,
        )

    @property
    def _chooser(self) -> Chooser:
        """Function from scores, present masks and numbers of masked weights to masks."""
        return lowest_masks

    def _covered(self, model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
        """The parameters that are masked, and why other parameters in the scope are not."""
        return self.scope.parameters(model), {}

    def _warn_of_new(self, model: nn.Module, frozen: Mapping[str, str]) -> None:
        if frozen.keys() - self._known_dense:
            self._known_dense |= frozen.keys()
            _warn_of_dense(self.scope.parameters(model), frozen)

    @abstractmethod
    def _check(self, space: WeightSpace, events: int | None) -> None:
        """Raise ``BudgetError`` if the remaining ``events`` cannot meet the budget."""

    @abstractmethod
    def _choose(self, space: WeightSpace, scoring: Scoring, budget: Budget, fraction: float) -> Mapping[str, Tensor]:
        """The masks of all parameters in ``space``; masked weights stay masked."""

    def _space(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], scores: Mapping[str, Tensor] | None = None
    ) -> WeightSpace:
        return WeightSpace(
            sizes={name: p.numel() for name, p in parameters.items()},
            masked={n: _hidden(self.masks[n]) if n in self.masks else 0 for n in parameters},
            shapes={name: tuple(p.shape) for name, p in parameters.items()},
            scores={} if scores is None else scores,
            masks=self.masks,
            state=lambda masks: state_after(model, Plan(masks=dict(masks))),
            choose=self._chooser,
        )

    def _modify(self, model: nn.Module, report: Report, optimizers: list[Optimizer]) -> None:
        self.masks = {name: mask.cpu() for name, mask in report.plan.masks.items()}
        self.enforcer(model).apply(optimizers)

    def enforcer(self, model: nn.Module) -> MaskEnforcer:
        """An enforcer of the present masks on ``model``."""
        reshard(model)
        return MaskEnforcer(dict(model.named_parameters()), self.masks)

    def follow(self, plan: Plan) -> None:
        """Slice the masks after channels were removed by ``plan``; the sparsity refers to the remaining weights."""
        super().follow(plan)
        if not plan.shrinks:
            return
        self.masks = Plan(masks=self.masks).slice_masks(plan)
        if self.masks:
            kept, total = nonzero_in(self.masks.values()), sum(mask.numel() for mask in self.masks.values())
            self.sparsity = 1 - kept / total

    def state_dict(self) -> dict[str, Any]:
        """The common state and the masks."""
        return {**super().state_dict(), "masks": pack(self.masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.masks = unpack(state["masks"])


class ScoresOnDemand(Mapping[str, Tensor]):
    """Parameter name -> scores, computed on access, so that the scores of one parameter at a time are in memory."""

    def __init__(self, criterion: Criterion, scoring: Scoring, names: Sequence[str]) -> None:
        self._criterion, self._scoring, self._names = criterion, scoring, names

    def __getitem__(self, name: str) -> Tensor:
        values = self._criterion.score_weights(name, self._scoring)
        check_finite(self._criterion, {name: values})
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _warn_of_dense(scoped: Mapping[str, Tensor], frozen: Mapping[str, str]) -> None:
    """Warn of parameters in the scope that stay dense, with reasons, once for all ranks."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0:
        return
    share = sum(scoped[name].numel() for name in frozen) / sum(tensor.numel() for tensor in scoped.values())
    reasons = [f"{name!r} ({why})" for name, why in frozen.items()]
    warnings.warn(
        f"{len(frozen)} of {len(scoped)} parameters in the scope stay dense, with {share:.2%} of the weights: "
        f"{', '.join(reasons[:5])}{', ...' if len(reasons) > 5 else ''}. Sparsities refer to the other parameters.",
        stacklevel=4,
    )


def _hidden(mask: Tensor) -> int:
    return mask.numel() - int(torch.count_nonzero(mask))


def _nonzero_under(masks: Mapping[str, Tensor], model: nn.Module) -> int:
    """Number of parameters that are not zero under the masks; computed for one tensor at a time, with bools."""
    parameters = ((name, full_tensor(parameter.detach())) for name, parameter in model.named_parameters())
    return nonzero_in(p.logical_and(masks[name].to(p.device)) if name in masks else p for name, p in parameters)
