"""Budgets in a Trainer."""

from pathlib import Path

import pytest
import torch
import yaml
from helpers.training import Events, Lit, fit, widths
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_prune import IterativePruning, SlimmingPenalty, Weights
from lightning_prune.budgets import ERK, All, Budget, Count, MACs, Params, Ratios, Threshold
from lightning_prune.cli import PruneCLI
from lightning_prune.criteria import BatchNormScale, Movement
from lightning_prune.schedules import Constant, Cubic, Rounds

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"


class Gammas(Callback):
    """Records |γ| of both batch norms just before and just after every event."""

    def __init__(self) -> None:
        self.before: list[list[list[float]]] = []
        self.after: list[list[list[float]]] = []

    def on_before_prune(self, trainer, pl_module, pruning) -> None:
        self._now = self.of(pl_module)

    def on_prune(self, trainer, pl_module, plan, report) -> None:
        self.before.append(self._now)
        self.after.append(self.of(pl_module))

    @staticmethod
    def of(module: Lit) -> list[list[float]]:
        return [layer.weight.detach().abs().tolist() for layer in module.net if isinstance(layer, nn.BatchNorm2d)]


def test_slimming_with_a_threshold(tmp_path) -> None:
    """The penalty pushes γ to zero; at every event those below the threshold go, and no others."""
    module, gammas = Lit(lr=0.1), Gammas()
    pruning = IterativePruning(Rounds(start=1, every=1, count=6), Threshold(0.75), BatchNormScale())
    fit(tmp_path, module, SlimmingPenalty(0.05), gammas, pruning, max_epochs=8)
    assert len(gammas.after) > 1
    for before, after in zip(gammas.before, gammas.after, strict=True):
        for dense, left in zip(before, after, strict=True):
            assert left == ([value for value in dense if value >= 0.75] or [max(dense)])
    assert widths(module)[:2] == [len(left) for left in gammas.after[-1]] != [8, 8]


def test_an_event_that_finds_nothing_below_is_no_error(tmp_path, caplog) -> None:
    module, events = Lit(), Events()
    pruning = IterativePruning(Rounds(start=1, every=1, count=2), Threshold(1e-6), BatchNormScale())
    with caplog.at_level("INFO"):
        fit(tmp_path, module, pruning, events, max_epochs=3)
    assert widths(module) == [8, 8, 3]
    assert events.reports == []
    assert pruning.pruner.fraction == 1.0
    assert "there is nothing to remove yet" in caplog.text


def test_soft_movement_pruning(tmp_path) -> None:
    """Weights that have moved towards zero since the last event are those with a negative score."""
    module, events = Lit(norm=False), Events()
    pruning = IterativePruning(Rounds(start=1, every=1, count=2), Threshold(0.0), Movement(), Weights())
    fit(tmp_path, module, pruning, events, max_epochs=3)
    hidden = [sum(before - after for before, after in report.widths.values()) for report in events.reports]
    assert len(hidden) == 2
    assert min(hidden) > 0
    zeros = sum(int((p == 0).sum()) for p in module.parameters() if p.dim() > 1)
    assert sum(hidden) == zeros < sum(p.numel() for p in module.parameters() if p.dim() > 1)


def test_erk_with_a_cubic_schedule(tmp_path) -> None:
    """Each event has the total of the schedule, shared by the shapes; weights stay masked."""
    module, events = Lit(), Events()
    pruning = IterativePruning(Cubic(start=0, end=4, every=1), ERK(0.8), granularity=Weights())
    fit(tmp_path, module, pruning, events, max_epochs=5)
    matrices = [p for p in module.parameters() if p.dim() > 1]
    total = sum(p.numel() for p in matrices)
    assert [round(report.sparsity * total) for report in events.reports] == [
        round(0.8 * (1 - (1 - n / 4) ** 3) * total) for n in range(1, 5)
    ]
    for report, later in zip(events.reports, events.reports[1:], strict=False):
        assert all(later.widths[name][1] <= left for name, (_, left) in report.widths.items())
    kept = [int(torch.count_nonzero(p)) for p in matrices]
    assert kept[2] == 3 * 8  # (3, 8) is small enough to stay dense
    rest = round(0.2 * total) - 24 - (total - sum(p.numel() for p in matrices))
    sums = [sum(p.shape) for p in matrices[:2]]
    assert all(abs(k - rest * s / sum(sums)) < 1 for k, s in zip(kept, sums, strict=False))


def test_shares_of_single_layers(tmp_path) -> None:
    module, events = Lit(), Events()
    pruning = IterativePruning(Rounds(start=1, every=1, count=2), Ratios({"net.0": 0.5, "net.3": 0.25}))
    fit(tmp_path, module, pruning, events, max_epochs=3)
    assert [[after for _, after in report.widths.values()] for report in events.reports] == [[6, 7], [4, 6]]
    assert widths(module) == [4, 6, 3]


def test_the_stricter_of_two_budgets_decides(tmp_path) -> None:
    def trained(budget: Budget) -> list[int]:
        module = Lit()
        fit(tmp_path, module, IterativePruning(Constant(1), budget), max_epochs=2)
        return widths(module)

    macs, params = trained(MACs(keep=0.5)), trained(Params(keep=0.3))
    assert trained(All([MACs(keep=0.5), Params(keep=0.3)])) == [min(pair) for pair in zip(macs, params, strict=True)]
    assert macs != params


@pytest.mark.parametrize(
    ("budget", "granularity", "message"),
    [
        (ERK(0.5), None, "is for single weights; with Channels"),
        (All([MACs(0.5), Count(1)]), Weights(), "counts what is physically removed; with Weights"),
    ],
    ids=repr,
)
def test_a_budget_for_something_else_is_refused_at_construction(budget, granularity, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        IterativePruning(Constant(1), budget, granularity=granularity)


@pytest.mark.parametrize(
    "budget", [Ratios({"net.9": 0.5}), All([MACs(0.5), Params(0.001)]), Ratios({"net.0": 0.99})], ids=repr
)
def test_what_cannot_be_met_is_said_before_an_epoch_is_spent(tmp_path, budget: Budget) -> None:
    module = Lit()
    with pytest.raises(MisconfigurationException):
        fit(tmp_path, module, IterativePruning(Rounds(start=2, every=1, count=2), budget), max_epochs=5)
    assert module.losses == []


def test_several_budgets_on_the_command_line(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(QUICKSTART.read_text())
    content["trainer"]["callbacks"][0]["init_args"]["budget"] = {
        "class_path": "All",
        "init_args": {
            "budgets": [
                {"class_path": "MACs", "init_args": {"keep": 0.5}},
                {"class_path": "lightning_prune.budgets.Ratios", "init_args": {"shares": {"network.*": 0.25}}},
            ]
        },
    }
    Path("config.yaml").write_text(yaml.safe_dump(content))
    cli = PruneCLI(args=["fit", "--config", "config.yaml", "--trainer.fast_dev_run=true"])
    (pruning,) = (c for c in cli.trainer.callbacks if isinstance(c, IterativePruning))
    assert pruning.pruner.budget == All([MACs(0.5), Ratios({"network.*": 0.25})])
    assert cli.trainer.global_step == 1
