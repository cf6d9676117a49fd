"""What layers put out and take in."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.coupling import find_coupling
from lightning_prune.criteria.statistics import AbsoluteActivations, PositiveActivations, SquaredInputs, Statistics
from lightning_prune.network.example_input import Example
from lightning_prune.surgery.plan import Plan

X = torch.tensor([[1.0, -2.0], [0.0, 5.0]])
NAMES = ["0.weight", "2.weight"]


def make() -> nn.Sequential:
    """The first layer passes on what it reads."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    nn.init.eye_(net[0].weight)
    return net


def observing(cls: type, net: nn.Module, every_n_steps: int = 1) -> Statistics:
    statistics = cls(every_n_steps)
    groups = find_coupling(net, Example.of(X)).groups.values() if isinstance(net[0], nn.Linear) else ()
    statistics.attach(net, groups, NAMES)
    return statistics


TOTALS = {
    AbsoluteActivations: {"0": [1, 7]},
    PositiveActivations: {"0": [1, 1]},
    SquaredInputs: {"0": [1, 29], "2": [1, 25]},
}
CLASSES = pytest.mark.parametrize("cls", list(TOTALS))


@CLASSES
def test_sums_and_counts_by_hand(cls: type) -> None:
    net = make()
    statistics = observing(cls, net)
    assert statistics.unseen() == list(TOTALS[cls])
    for step in range(2):
        statistics.begin_step(step)
        net(X)
        statistics.commit()
        statistics.end_step()
    for name, total in TOTALS[cls].items():
        assert statistics.totals[name].tolist() == [2 * value for value in total]
        assert statistics.totals[f"examples of {name}"].item() == 4
    assert len(statistics.totals) == 2 * len(TOTALS[cls])
    assert statistics.unseen() == []
    assert statistics.steps == 2


@CLASSES
def test_nothing_outside_training_batches_is_counted(cls: type) -> None:
    """Not the validation before the first batch, nor that between two, and whether gradients are enabled is no sign."""
    net = make()
    statistics = observing(cls, net, every_n_steps=2)
    net(X)
    for step in range(4):
        statistics.begin_step(step)
        net(X)
        statistics.end_step()
        net(X)
    assert statistics.totals["0"].tolist() == [2 * value for value in TOTALS[cls]["0"]]


@CLASSES
def test_copies_carry_no_hooks_that_act(cls: type) -> None:
    net = make()
    statistics = observing(cls, net)
    statistics.totals = {"other": torch.ones(1_000_000)}  # would show in a copy
    assert len(pickle.dumps(net)) < 100_000
    statistics.begin_step(0)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        twin(X)
        assert statistics.totals.keys() == {"other"}
        assert all(hook.owner is None for module in twin.modules() for hook in module._forward_hooks.values())
    net(X)
    assert statistics.totals["0"].tolist() == TOTALS[cls]["0"]


@CLASSES
def test_hooks_come_and_go(cls: type) -> None:
    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in net.modules())

    net = make()
    statistics = observing(cls, net)
    statistics.attach(net, find_coupling(net, Example.of(X)).groups.values(), NAMES)
    assert hooks() == len(TOTALS[cls])
    statistics.detach()
    assert hooks() == 0


@CLASSES
def test_a_state_goes_on(cls: type) -> None:
    net = make()
    statistics = observing(cls, net)
    statistics.begin_step(0)
    net(X)
    state = statistics.state_dict()
    statistics.detach()
    resumed = observing(cls, net)
    resumed.load_state_dict(state)
    resumed.begin_step(1)
    net(X)
    assert resumed.totals["0"].tolist() == [2 * value for value in TOTALS[cls]["0"]]
    assert state["totals"]["0"].tolist() == TOTALS[cls]["0"]


@CLASSES
def test_inference_mode_and_half_precision(cls: type) -> None:
    net = make().bfloat16()
    statistics = observing(cls, make())
    statistics.attach(net, find_coupling(make(), Example.of(X)).groups.values(), NAMES)
    for step in range(2):
        statistics.begin_step(step)
        with torch.inference_mode():
            net(X.bfloat16())
    assert statistics.totals["0"].dtype == torch.float32
    assert statistics.totals["0"].tolist() == [2 * value for value in TOTALS[cls]["0"]]


def test_inputs_are_cut_with_the_layer() -> None:
    net = make()
    statistics = observing(SquaredInputs, net)
    statistics.begin_step(0)
    net(X)
    kept = torch.tensor([1])
    statistics.follow(Plan(keep={"0.weight": {0: kept}, "2.weight": {1: kept}}))
    assert statistics.totals["0"].tolist() == [1, 29]  # it reads what it did
    assert statistics.totals["2"].tolist() == [25]
    for layer, dim in ((net[0], 0), (net[2], 1)):
        layer.weight.data = layer.weight.data.index_select(dim, kept)
    net(X)
    assert statistics.totals["2"].tolist() == [50]
    assert statistics.totals["examples of 2"].item() == 4


def test_inputs_of_grouped_convolutions_begin_anew() -> None:
    net = nn.Sequential(nn.Conv1d(2, 2, 1, groups=2), nn.ReLU(), nn.Conv1d(2, 1, 1))
    statistics = observing(SquaredInputs, net)
    statistics.begin_step(0)
    net(X.T.unsqueeze(0))
    statistics.follow(Plan(keep={"0.weight": {0: torch.tensor([1])}, "2.weight": {1: torch.tensor([1])}}))
    assert statistics.totals.keys() == {"2", "examples of 2"}
    assert statistics.unseen() == ["0"]


def test_layers_that_are_no_matrices_are_not_hooked() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Embedding(3, 2))
    statistics = SquaredInputs()
    statistics.attach(net, parameters=[name for name, _ in net.named_parameters()])
    assert statistics.unseen() == ["0"]


def test_a_layer_that_is_called_twice_is_seen_twice() -> None:
    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](self[0](self[0](x)))

    net = Twice(*make())
    statistics = SquaredInputs()
    statistics.attach(net, parameters=NAMES)
    statistics.begin_step(0)
    net(X)
    assert statistics.totals["0"].tolist() == [2, 58]
    assert statistics.totals["examples of 0"].item() == 4
