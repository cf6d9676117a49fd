"""Width search: chooses widths that meet a budget and with which the network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor, nn

from lightning_prune.budgets.latency_measurement import SHARES, Copies, Stopwatch
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.dense_reference import DenseReference
from lightning_prune.budgets.spaces.latency_table import Conditions
from lightning_prune.budgets.spaces.ranking import isomorphism_classes
from lightning_prune.coupling.groups import Coupling
from lightning_prune.granularity import Channels
from lightning_prune.network.example_input import Example
from lightning_prune.pruners.width_trials import Choice, FailingWidthsError, Trials
from lightning_prune.surgery.preview import state_after
from lightning_prune.surgery.removal import plan_removal

KeepUnits = Callable[[ChannelSpace], Mapping[str, int]]  # from the space to the units kept, by group name


class WidthSearch:
    """Chooses widths that meet a budget and with which the network runs.

    The last dry run and the latency tables are cached. Dry runs are cheap to repeat; tables are part of checkpoints.

    Args:
        granularity: Limits of the widths, and how groups are ranked.

    Attributes:
        dense: Size of the dense network; None before the first ``prepare``.
        blocked: Group name -> why the network fails with fewer of its channels.
        stopwatch: Latency tables, where a budget needs them.
    """

    def __init__(self, granularity: Channels) -> None:
        self.dense: DenseReference | None = None
        self.blocked: dict[str, str] = {}
        self.stopwatch = Stopwatch()
        self._granularity = granularity
        self._trials = Trials()

    def start(self, model: nn.Module, coupling: Coupling, groups: Mapping[str, Tensor]) -> None:
        """Record the size of the dense network, unless that was done before."""
        if self.dense is None:
            isomorphic = self._granularity.ranking == "isomorphic"
            classes = isomorphism_classes(model, coupling, groups) if isomorphic else None
            self.dense = DenseReference.of(coupling, groups, classes)

    def measure_latencies(
        self,
        model: nn.Module,
        example: Example,
        coupling: Coupling,
        scores: Mapping[str, Tensor],
        conditions: Iterable[Conditions],
    ) -> None:
        """Measure the latency tables that are missing, at widths with which the network runs."""
        missing = [one for one in conditions if one not in self.stopwatch.tables]
        if missing:
            widths: list[KeepUnits] = [lambda space, share=share: space.keep_share(share) for share in SHARES]  # type: ignore[misc]
            removals = [self.choose(model, example, coupling, scores, keep).removed for keep in widths]
            for one in missing:
                self.stopwatch.add(one, Copies(model, example, coupling), removals)

    def choose(
        self,
        model: nn.Module,
        example: Example,
        coupling: Coupling,
        scores: Mapping[str, Tensor],
        keep: KeepUnits,
        timing: bool = False,
    ) -> Choice:
        """The widths of ``keep``, restricted to those with which a copy of ``model`` runs.

        Where the copy fails, the groups that cause it are added to ``blocked`` and the widths are chosen again.

        Args:
            model: The network.
            example: What its forward receives.
            coupling: Its dependency groups.
            scores: Group name -> scores, shape (units,).
            keep: Function from the channels that can be removed to the units kept, by group name.
            timing: Whether ``keep`` may time copies of the network; otherwise it uses the latency tables.

        Raises:
            BudgetError: If the budget cannot be met.
            ValueError: If every group is blocked.
        """

        def timed(removed: Mapping[str, Tensor], conditions: Conditions) -> float:
            failing = self._trials.of(model, example, coupling, removed).failing
            if failing:
                raise FailingWidthsError(failing)
            return self.stopwatch.measured(conditions, Copies(model, example, coupling), removed)

        while True:
            space = self.space(model, coupling, scores)
            try:
                widths = keep(replace(space, timed=timed) if timing else space)
                kept = {name: min(units, space.now[name]) for name, units in widths.items()}
                removed = space.lowest(kept)
                trial = self._trials.of(model, example, coupling, removed)
                if not trial.failing:
                    return Choice(kept, removed, trial)
                failing = trial.failing
            except FailingWidthsError as error:
                failing = error.failing
            self.blocked = coupling.kept_together({**self.blocked, **failing})

    def space(self, model: nn.Module, coupling: Coupling, scores: Mapping[str, Tensor]) -> ChannelSpace:
        """The channels that a budget can remove.

        Raises:
            ValueError: If there are none.
        """
        assert self.dense is not None, "start comes first"
        candidates = {name: values for name, values in scores.items() if name not in self.blocked}
        if not candidates:
            raise ValueError(f"no channel of the network can be removed: {self.blocked}")
        return ChannelSpace(
            coupling,
            candidates,
            self.dense,
            self._granularity.round_to,
            self._granularity.min_width,
            self._granularity.ranking,
            state=lambda removed: state_after(model, plan_removal(removed, coupling)),
            tables=self.stopwatch.tables,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the last dry run, which refers to the analysis."""
        return {**vars(self), "_trials": Trials()}

    def state_dict(self) -> dict[str, Any]:
        """The size of the dense network, blocked groups and latency tables, as plain numbers."""
        return {
            "origin": None if self.dense is None else asdict(self.dense),
            "blocked": dict(self.blocked),
            "latency": self.stopwatch.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        self.dense = None if state["origin"] is None else DenseReference(**state["origin"])
        self.blocked = dict(state["blocked"])
        self.stopwatch.load_state_dict(state.get("latency", ()))
