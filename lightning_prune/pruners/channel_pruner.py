"""Removing channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.budgets.budget import Budget, BudgetError
from lightning_prune.budgets.latency_measurement import SHARES, Copies, Stopwatch
from lightning_prune.budgets.ratios import Ratios
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.dense_reference import DenseReference
from lightning_prune.budgets.spaces.latency_table import Conditions
from lightning_prune.budgets.spaces.ranking import isomorphism_classes
from lightning_prune.budgets.threshold import Threshold
from lightning_prune.coupling.analysis import find_coupling
from lightning_prune.coupling.groups import Coupling, Group
from lightning_prune.coupling.tracing.trace import UNUSED
from lightning_prune.criteria.criterion import Criterion, Scoring
from lightning_prune.granularity import Channels
from lightning_prune.network.example_input import Example, without_garbage_collection
from lightning_prune.network.size import Size
from lightning_prune.pruners.pruner import Pruner, check_finite
from lightning_prune.pruners.user_warnings import give_notice, unscored, warn_of_unscored
from lightning_prune.pruners.width_trials import BreaksError, Choice, Trials, sizes
from lightning_prune.scope import Scope
from lightning_prune.surgery.apply import apply_plan
from lightning_prune.surgery.averaged_copies import following_averages, with_averages
from lightning_prune.surgery.dry_run import OTHER_CODE_PATH
from lightning_prune.surgery.preview import state_after
from lightning_prune.surgery.removal import compensate_scalars, plan_removal
from lightning_prune.surgery.report import Report
from lightning_prune.surgery.weight_norms import rescale_weight_norms, spectral_norm_groups


class ChannelPruner(Pruner):
    """Ranks the channels of a network and removes the lowest.

    Args:
        granularity: How the widths are rounded.
        criterion: What matters.
        budget: Until what.
        scope: Where.
    """

    def __init__(self, granularity: Channels, criterion: Criterion, budget: Budget, scope: Scope) -> None:
        super().__init__(criterion, budget, scope)
        if not criterion.scores_channels:
            raise ValueError(f"criterion {criterion} does not score channels; use Weights(), or another criterion")
        if not budget.units:
            raise ValueError(f"budget {budget} is for single weights; with Channels() use Sparsity, Ratio or Ratios")
        if granularity.ranking != "global" and isinstance(budget, (Threshold, Ratios)):
            raise ValueError(
                f"granularity {granularity} ranks groups against each other, but budget {budget} decides on each by "
                "itself; leave ranking='global'"
            )
        if granularity.ranking != "global" and budget.per_layer:
            raise ValueError(
                f"granularity {granularity} ranks groups against each other, but budget {budget} takes the same share "
                "of each; give the budget per_layer=False"
            )
        self.granularity = granularity
        self.dense: DenseReference | None = None
        self.blocked: dict[str, str] = {}
        self.stopwatch = Stopwatch()
        self.groups: frozenset[str] = frozenset()  # what is ranked, known from `prepare` on
        self._coupling: Coupling | None = None
        self._scoped: tuple[Coupling, dict[str, Group], dict[str, str]] | None = None
        self._trials = Trials()

    @without_garbage_collection()
    def prepare(self, model: nn.Module, example: Example | None, events: int | None = None) -> None:
        """Analyse the network, try the final widths on a copy, and hook what has to be observed."""
        scoring = self.scoring(model, example)
        coupling = self.coupling(model, example, scoring.tensors)
        groups, reasons = self._candidates(model, coupling, replace(scoring, statistics={}))
        scored = {name: torch.zeros(group.size) for name, group in groups.items() if name not in reasons}
        self.groups = frozenset(scored)
        if self.event == 0:  # else a training before this one has said it
            give_notice(self.criterion, model, coupling, groups, reasons)
        if self.dense is None:
            isomorphic = self.granularity.ranking == "isomorphic"
            classes = isomorphism_classes(model, coupling, scored) if isomorphic else None
            self.dense = DenseReference.of(coupling, scored, classes)
        assert example is not None
        self._measure_latencies(model, example, coupling, scored)
        self._choose(model, example, coupling, scored, lambda space: self.budget.keep_units(space, 1.0))
        self.budget.check_units(self._space(model, coupling, scored), None if events is None else events - self.event)
        if self.statistics is not None:
            self.statistics.attach(model, [groups[name] for name in scored if name not in self.blocked])

    def observe(self, model: nn.Module) -> None:
        """Also of channels whose weights were frozen when training began."""
        scoring = replace(self.scoring(model, None), statistics={})
        known = self._coupling
        if self.statistics is not None and known is not None and known.shapes.keys() == scoring.tensors.keys():
            groups, reasons = self._candidates(model, known, scoring)
            self.statistics.attach(model, [g for n, g in groups.items() if n not in reasons and n not in self.blocked])

    def coupling(self, model: nn.Module, example: Example | None, tensors: Mapping[str, Tensor]) -> Coupling:
        """The analysis of ``model``, made again only when the shapes of its ``tensors`` have changed."""
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
        """Score, choose, try on a copy, and measure."""
        scoring, target = self.scoring(model, example, statistics), budget or self.budget
        coupling = self.coupling(model, example, scoring.tensors)
        assert self.dense is not None, "prepare comes first"
        try:
            groups, reasons = self._candidates(model, coupling, scoring)
        except ValueError as error:  # there was something to remove before the first event
            raise BudgetError(f"no channels are left to remove: {error}") from error
        warn_of_unscored(self.criterion, groups, {n: why for n, why in reasons.items() if n in self.groups})
        self.groups -= reasons.keys()
        left_out = reasons.keys() | self.blocked.keys()
        scores = {n: self.criterion.score_units(g, scoring) for n, g in groups.items() if n not in left_out}
        check_finite(self.criterion, scores)
        assert example is not None
        choice = self._choose(
            model, example, coupling, scores, lambda space: target.keep_units(space, fraction), timing=True
        )
        trial = choice.trial
        pruned = [name for name, units in choice.removed.items() if units.any()]
        removal = plan_removal(choice.removed, coupling)
        plan, inexact = compensate_scalars(removal, pruned, coupling, trial.scalars, trial.constants)
        if trial.apart:
            inexact = {**dict.fromkeys(pruned, OTHER_CODE_PATH), **inexact}
        inexact = {**spectral_norm_groups(model, pruned, coupling), **inexact}
        plan = rescale_weight_norms(with_averages(plan, model), model)
        before, after = sizes(model, coupling, plan, choice.removed)
        return Report(
            plan=plan,
            before=before,
            after=after,
            sparsity=1 - after.params / self.dense.params,
            fraction=fraction,
            widths={name: (groups[name].size, kept) for name, kept in choice.kept.items()},
            scores=scores,
            frozen={**coupling.frozen, **self._space(model, coupling, scores).at_minimum, **reasons, **self.blocked},
            inexact={
                name: groups[name].inexact or inexact[name]
                for name in pruned
                if (groups[name].inexact or name in inexact)
            },
        )

    @property
    def unused(self) -> list[str]:
        """Tensors that the forward pass does not use."""
        frozen = {} if self._coupling is None else self._coupling.frozen
        return [name for name, why in frozen.items() if why.startswith(UNUSED)]

    def resized(self, size: Size) -> None:
        """The sparsity is that of the whole network, whoever pruned it."""
        if self.dense is not None:
            self.sparsity = 1 - size.params / self.dense.params

    def _candidates(
        self, model: nn.Module, coupling: Coupling, scoring: Scoring
    ) -> tuple[dict[str, Group], dict[str, str]]:
        """Groups in the scope, and the reasons why some groups are left out."""
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

    def _choose(
        self,
        model: nn.Module,
        example: Example,
        coupling: Coupling,
        scores: Mapping[str, Tensor],
        choose: Callable[[ChannelSpace], Mapping[str, int]],
        timing: bool = False,
    ) -> Choice:
        """Widths that are chosen, and run, and units to remove; groups that break the network are blocked."""

        def timed(removed: Mapping[str, Tensor], conditions: Conditions) -> float:
            failing = self._trials.of(model, example, coupling, removed).failing
            if failing:
                raise BreaksError(failing)
            return self.stopwatch.measured(conditions, Copies(model, example, coupling), removed)

        while True:
            space = self._space(model, coupling, scores)
            try:
                widths = choose(replace(space, timed=timed) if timing else space)
                kept = {n: min(k, space.now[n]) for n, k in widths.items()}
                removed = space.lowest(kept)
                trial = self._trials.of(model, example, coupling, removed)
                if not trial.failing:
                    return Choice(kept, removed, trial)
                failing = trial.failing
            except BreaksError as error:
                failing = error.failing
            self.blocked = coupling.kept_together({**self.blocked, **failing})

    def _measure_latencies(
        self, model: nn.Module, example: Example, coupling: Coupling, scored: Mapping[str, Tensor]
    ) -> None:
        """Fill the tables that the budget asks for and that are not there yet, at widths that run."""
        missing = [conditions for conditions in self.budget.conditions if conditions not in self.stopwatch.tables]
        if missing:
            widths = [lambda space, share=share: space.keep_share(share) for share in SHARES]
            removals = [self._choose(model, example, coupling, scored, choose).removed for choose in widths]
            for conditions in missing:
                self.stopwatch.add(conditions, Copies(model, example, coupling), removals)

    def _space(self, model: nn.Module, coupling: Coupling, scores: Mapping[str, Tensor]) -> ChannelSpace:
        assert self.dense is not None
        candidates = {name: values for name, values in scores.items() if name not in self.blocked}
        if not candidates:
            raise ValueError(f"no channel of the network can be removed: {self.blocked}")
        settings = self.granularity
        return ChannelSpace(
            coupling, candidates, self.dense, settings.round_to, settings.min_width, settings.ranking,
            state=lambda removed: state_after(model, plan_removal(removed, coupling)),
            tables=self.stopwatch.tables,
        )  # fmt: skip

    def scoring(
        self, model: nn.Module, example: Example | None, statistics: Mapping[str, Tensor] | None = None
    ) -> Scoring:
        """Also how the scores of coupled tensors become one."""
        return replace(super().scoring(model, example, statistics), aggregate=self.granularity.aggregate)

    def _modify(self, model: nn.Module, report: Report, optimizers: list[Optimizer]) -> None:
        apply_plan(model, report.plan, optimizers)

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be found out again: the analysis refers to operations of PyTorch, which have no pickle."""
        return {**vars(self), "_coupling": None, "_scoped": None, "_trials": Trials()}

    def state_dict(self) -> dict[str, Any]:
        """The common state, the size of the original and what was found not to be removable."""
        return {
            **super().state_dict(),
            "origin": None if self.dense is None else asdict(self.dense),
            "blocked": dict(self.blocked),
            "latency": self.stopwatch.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.dense = None if state["origin"] is None else DenseReference(**state["origin"])
        self.blocked = dict(state["blocked"])
        self.stopwatch.load_state_dict(state.get("latency", ()))
