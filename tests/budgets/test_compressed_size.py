"""The network shrinks until its file is small enough."""

import math
import re

import pytest
import torch
from helpers.training import Events, Lit, fit
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_prune import Channels, IterativePruning, Weights, prune_once
from lightning_prune.budgets import All, BudgetError, FileSize, Ratio
from lightning_prune.budgets.search import largest_within
from lightning_prune.file_size import compressed_size
from lightning_prune.schedules import Rounds
from lightning_prune.surgery.preview import state_after

INPUT = torch.zeros(1, 40)


def mlp() -> nn.Sequential:
    """Layers of different scales, so that ranking takes more of some; 0.27 MB as they are."""
    layers = [nn.Linear(40, 200), nn.ReLU(), nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 10)]
    with torch.no_grad():
        layers[2].weight.mul_(0.5)
    return nn.Sequential(*layers)


def size_of(net: nn.Module) -> float:
    return compressed_size(dict(net.state_dict())) / 1e6


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("granularity", [Channels(), Weights()], ids=repr)
@pytest.mark.parametrize("mb", [0.2, 0.1, 0.03])
def test_the_file_is_as_large_as_is_asked_for(granularity, per_layer: bool, mb: float) -> None:
    net = mlp()
    prune_once(net, INPUT, granularity=granularity, budget=FileSize(mb, per_layer=per_layer))
    step = 0.02 if granularity == Channels() else 0.005  # one unit of 40 + 300 + 1 weights of 70,000, or tolerance
    assert mb * (1 - step) <= size_of(net) <= mb


def test_widths_that_are_rounded_stay_below() -> None:
    net = mlp()
    prune_once(net, INPUT, granularity=Channels(round_to=16), budget=FileSize(0.1))
    assert net[0].out_features % 16 == net[2].out_features % 16 == 0
    assert 0.08 < size_of(net) <= 0.1


@pytest.mark.parametrize("granularity", [Channels(), Weights()], ids=repr)
def test_on_the_way_the_size_is_interpolated_from_the_dense_network(granularity, tmp_path) -> None:
    """Four events; shares of a size never compound."""
    sizes: list[float] = []

    class Watch(Events):
        def on_prune(self, trainer, pl_module, plan, report) -> None:
            sizes.append(compressed_size(dict(pl_module.state_dict())) / 1e6)

    module = Lit(width=96)
    dense = compressed_size(dict(module.state_dict())) / 1e6
    pruning = IterativePruning(Rounds(start=1, every=1, count=4), FileSize(0.1), granularity=granularity)
    fit(tmp_path, module, pruning, Watch(), max_epochs=6)
    wanted = [dense - (dense - 0.1) * n / 4 for n in range(1, 5)]
    assert sizes == pytest.approx(wanted, rel=0.03)
    assert sizes[-1] <= 0.1
    assert compressed_size(dict(module.state_dict())) / 1e6 == pytest.approx(
        0.1, rel=0.02
    )  # trained for two epochs more


def test_with_another_budget_both_are_met() -> None:
    for budget in (All([FileSize(0.1), Ratio(0.1)]), All([FileSize(0.25), Ratio(0.6)])):
        net = mlp()
        prune_once(net, INPUT, budget=budget)
        assert size_of(net) <= budget.budgets[0].mb
        assert net[0].out_features <= 200 * (1 - budget.budgets[1].share)


@pytest.mark.parametrize(
    ("granularity", "budget", "message"),
    [
        (
            Channels(),
            FileSize(0.001),
            r"cannot be met: with the fewest channels in every layer the file has 0.00\d+ MB",
        ),
        (Weights(), FileSize(0.001), r"cannot be met: with the fewest weights in every layer the file has 0.0\d+ MB"),
        (
            Channels(),
            FileSize(25),
            r"FileSize\(mb=25, per_layer=False\) is met already: the file of the dense network has 0",
        ),
        (
            Weights(),
            FileSize(25),
            r"FileSize\(mb=25, per_layer=False\) is met already: the file of the dense network has 0",
        ),
    ],
    ids=repr,
)
def test_what_cannot_be_met_says_what_can(granularity, budget: FileSize, message: str) -> None:
    net = mlp()
    with pytest.raises(BudgetError, match=message):
        prune_once(net, INPUT, granularity=granularity, budget=budget)
    assert net[0].out_features == 200


def test_what_can_be_met_can(tmp_path) -> None:
    """The size that the message names is one that pruning reaches."""
    with pytest.raises(BudgetError) as error:
        prune_once(mlp(), INPUT, budget=FileSize(0.001))
    least = float(re.search(r"the file has ([\d.]+) MB", str(error.value)).group(1))
    net = mlp()
    prune_once(net, INPUT, budget=FileSize(least * 1.05))
    assert size_of(net) <= least * 1.05


def test_it_is_said_before_an_epoch_is_spent(tmp_path) -> None:
    module = Lit()
    with pytest.raises(MisconfigurationException, match="cannot be met: with the fewest"):
        fit(tmp_path, module, IterativePruning(Rounds(start=2, every=1, count=2), FileSize(1e-4)), max_epochs=5)
    assert module.losses == []


def test_the_estimate_is_not_what_counts() -> None:
    """Weights of few values compress far better than their bytes suggest: the result is compressed to find out."""
    net = mlp()
    with torch.no_grad():
        net[2].weight.sign_().mul_(0.01)  # one bit a weight
    report = prune_once(net, INPUT, budget=FileSize(0.025), dry_run=True)
    assert 0.0225 <= compressed_size(state_after(net, report.plan)) / 1e6 <= 0.025


@given(st.integers(1, 400), st.floats(0.5, 2), st.integers(5, 500))
@settings(deadline=None)
def test_a_wrong_estimate_is_corrected(target: int, error: float, finest: int) -> None:
    """Sizes 1, 2, ... ``finest``; the estimate is off by a factor. Never above the target, and near it."""
    measured: list[int] = []

    def measure(size: int) -> int:
        measured.append(size)
        return size

    result = largest_within(lambda aim: min(finest, max(1, math.floor(aim * error))), measure, target, 0.005)
    assert result <= target
    assert result in measured
    assert result >= min(finest, target * 0.99 - 2)
    assert len(measured) == len(set(measured)) <= 40


@pytest.mark.parametrize("value", [0, -3, True, "25", None, math.nan, math.inf], ids=repr)
def test_the_size_is_positive(value: object) -> None:
    with pytest.raises(ValueError, match=r"^FileSize mb=.* must be a finite number above 0, in megabytes, such as 25$"):
        FileSize(value)
    with pytest.raises(ValueError, match=r"^FileSize per_layer=1 must be True or False$"):
        FileSize(25, per_layer=1)
