"""Channel pruner: scores the channels of a network and removes the lowest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.budgets.budget import Budget, BudgetError
from lightning_prune.budgets.spaces.dense_reference import DenseReference
from lightning_prune.coupling.analysis import find_coupling
from lightning_prune.coupling.groups import Coupling, Group
from lightning_prune.coupling.tracing.trace import UNUSED
from lightning_prune.criteria.criterion import Criterion, Scoring
from lightning_prune.granularity import Channels
from lightning_prune.network.example_input import Example, without_garbage_collection
from lightning_prune.network.size import Size
from lightning_prune.pruners.pruner import Pruner, check_finite
from lightning_prune.pruners.user_warnings import unscored, warn_before_pruning, warn_of_unscored
from lightning_prune.pruners.width_search import WidthSearch
from lightning_prune.pruners.width_trials import Choice, sizes
from lightning_prune.scope import Scope
from lightning_prune.surgery.apply import apply_plan
from lightning_prune.surgery.averaged_copies import following_averages, with_averages
from lightning_prune.surgery.dry_run import OTHER_CODE_PATH
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.removal import compensate_scalars, plan_removal
from lightning_prune.surgery.report import Report
from lightning_prune.surgery.weight_norms import rescale_weight_norms, spectral_norm_groups


class ChannelPruner(Pruner):
    """Scores the channels of a network and removes the lowest.

    Args:
        granularity: Limits of the widths, and how channels are ranked.
        criterion: Saliency criterion that scores channels.
        budget: Target size.
        scope: Modules that may be pruned.

    Attributes:
        groups: Names of the groups that are ranked; known after ``prepare``.
        search: The width search.
    """

    def __init__(self, granularity: Channels, criterion: Criterion, budget: Budget, scope: Scope) -> None:
        super().__init__(criterion, budget, scope)
        if not criterion.scores_channels:
            raise ValueError(f"criterion {criterion} does not score channels; use Weights(), or another criterion")
        if not budget.units:
            raise ValueError(f"budget {budget} is for single weights; with Channels() use Sparsity, Ratio or Ratios")
        if granularity.ranking != "global" and budget.per_layer:
            raise ValueError(
                f"granularity {granularity} ranks groups against each other, but budget {budget} prunes each group by "
                "itself; use ranking='global', or a budget with per_layer=False"
            )
        self.granularity = granularity
        self.groups: frozenset[str] = frozenset()
        self.search = WidthSearch(granularity)
        self._coupling: Coupling | None = None
        self._scoped: tuple[Coupling, dict[str, Group], dict[str, str]] | None = None

    @property
    def dense(self) -> DenseReference | None:
        """Size of the dense network; None before ``prepare``."""
        return self.search.dense

    @without_garbage_collection()
    def prepare(self, model: nn.Module, example: Example | None, events: int | None = None) -> None:
        """Analyze the network, try the final widths on a copy, and start to gather statistics."""
        scoring = self.scoring(model, example)
        coupling = self.coupling(model, example, scoring.tensors)
        groups, reasons = self._candidates(model, coupling, replace(scoring, statistics={}))
        scored = {name: torch.zeros(group.size) for name, group in groups.items() if name not in reasons}
        self.groups = frozenset(scored)
        if self.event == 0:  # otherwise the training that is resumed has warned already
            warn_before_pruning(self.criterion, model, coupling, groups, reasons)
        assert example is not None
        search = self.search
        search.start(model, coupling, scored)
        search.measure_latencies(model, example, coupling, scored, self.budget.conditions)
        search.choose(model, example, coupling, scored, lambda space: self.budget.keep_units(space, 1.0))
        events_left = None if events is None else events - self.event
        self.budget.check_units(search.space(model, coupling, scored), events_left)
        if self.statistics is not None:
            self.statistics.attach(model, [groups[name] for name in scored if name not in search.blocked])

    def observe(self, model: nn.Module) -> None:
        """Also gather statistics of channels whose weights were frozen when training began."""
        scoring = replace(self.scoring(model, None), statistics={})
        known = self._coupling
        if self.statistics is not None and known is not None and known.shapes.keys() == scoring.tensors.keys():
            groups, reasons = self._candidates(model, known, scoring)
            left_out = reasons.keys() | self.search.blocked.keys()
            self.statistics.attach(model, [group for name, group in groups.items() if name not in left_out])

    def coupling(self, model: nn.Module, example: Example | None, tensors: Mapping[str, Tensor]) -> Coupling:
        """The dependency groups of ``model``, analyzed again only when the shapes of its ``tensors`` have changed."""
        if example is None:
            raise ValueError(
                "channels are found by following them through a forward pass, which needs an example input"
            )
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if self._coupling is None or self._coupling.shapes != shapes:
            self._coupling = following_averages(find_coupling(model, example, self.granularity.attention), model)
        return self._coupling

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
        """Score, choose the widths, plan the removal and report."""
        assert example is not None
        assert self.dense is not None, "prepare comes first"
        scoring, target = self.scoring(model, example, statistics), budget or self.budget
        coupling = self.coupling(model, example, scoring.tensors)
        groups, reasons, scores = self._score(model, coupling, scoring)
        choice = self.search.choose(
            model, example, coupling, scores, lambda space: target.keep_units(space, fraction), timing=True
        )
        plan, inexact = _plan(model, coupling, choice)
        before, after = sizes(model, coupling, plan, choice.removed)
        at_minimum = self.search.space(model, coupling, scores).at_minimum
        return Report(
            plan=plan,
            before=before,
            after=after,
            sparsity=1 - after.params / self.dense.params,
            fraction=fraction,
            widths={name: (groups[name].size, kept) for name, kept in choice.kept.items()},
            scores=scores,
            frozen={**coupling.frozen, **at_minimum, **reasons, **self.search.blocked},
            inexact=inexact,
        )

    @property
    def unused(self) -> list[str]:
        """Names of tensors that the forward pass does not use."""
        frozen = {} if self._coupling is None else self._coupling.frozen
        return [name for name, why in frozen.items() if why.startswith(UNUSED)]

    def resized(self, size: Size) -> None:
        """Update the sparsity, which is that of the whole network, also after events of other pruners."""
        if self.dense is not None:
            self.sparsity = 1 - size.params / self.dense.params

    def _score(
        self, model: nn.Module, coupling: Coupling, scoring: Scoring
    ) -> tuple[dict[str, Group], dict[str, str], dict[str, Tensor]]:
        """Groups in the scope, why some of them are left out, and the scores of the others."""
        try:
            groups, reasons = self._candidates(model, coupling, scoring)
        except ValueError as error:  # some channels could be removed before the first event
            raise BudgetError(f"no channels are left to remove: {error}") from error
        warn_of_unscored(self.criterion, groups, {n: why for n, why in reasons.items() if n in self.groups})
        self.groups -= reasons.keys()
        left_out = reasons.keys() | self.search.blocked.keys()
        scores = {n: self.criterion.score_units(g, scoring) for n, g in groups.items() if n not in left_out}
        check_finite(self.criterion, scores)
        return groups, reasons, scores

    def _candidates(
        self, model: nn.Module, coupling: Coupling, scoring: Scoring
    ) -> tuple[dict[str, Group], dict[str, str]]:
        """Groups in the scope, and why groups are left out: outside the scope, or not scored by the criterion."""
        if self._scoped is None or self._scoped[0] is not coupling:
            self._scoped = coupling, *self.scope.groups(model, coupling)
        _, groups, outside = self._scoped
        reasons = coupling.kept_together({**outside, **unscored(self.criterion, groups, scoring)})
        if all(name in reasons for name in groups):
            raise ValueError(
                f"criterion {self.criterion} can score no channels of {type(model).__name__}: "
                f"{next(iter(reasons.values()))}. Use another criterion, or widen the scope."
            )
        return groups, reasons

    def scoring(
        self, model: nn.Module, example: Example | None, statistics: Mapping[str, Tensor] | None = None
    ) -> Scoring:
        """The input of the criterion, with the reduction over coupled tensors."""
        return replace(super().scoring(model, example, statistics), aggregate=self.granularity.aggregate)

    def _modify(self, model: nn.Module, report: Report, optimizers: list[Optimizer]) -> None:
        apply_plan(model, report.plan, optimizers)

    def __getstate__(self) -> dict[str, Any]:
        """Without the analysis, which refers to operations of PyTorch that cannot be pickled; it is made again."""
        return {**vars(self), "_coupling": None, "_scoped": None}

    def state_dict(self) -> dict[str, Any]:
        """The common state, the size of the dense network, blocked groups and latency tables."""
        return {**super().state_dict(), **self.search.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.search.load_state_dict(state)


def _plan(model: nn.Module, coupling: Coupling, choice: Choice) -> tuple[Plan, dict[str, str]]:
    """The plan of a choice, and for each pruned group where the result is not exact: the reason."""
    trial = choice.trial
    pruned = [name for name, units in choice.removed.items() if units.any()]
    removal = plan_removal(choice.removed, coupling)
    plan, inexact = compensate_scalars(removal, pruned, coupling, trial.scalars, trial.constants)
    if trial.apart:
        inexact = {**dict.fromkeys(pruned, OTHER_CODE_PATH), **inexact}
    inexact = {**spectral_norm_groups(model, pruned, coupling), **inexact}
    plan = rescale_weight_norms(with_averages(plan, model), model)
    reasons = {name: coupling.groups[name].inexact or inexact.get(name) for name in pruned}
    return plan, {name: why for name, why in reasons.items() if why}
