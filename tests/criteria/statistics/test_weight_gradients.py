"""What is made of weights and gradients, step by step."""

import io

import pytest
import torch
from helpers.gathering import X, by_hand, one_step
from torch import Tensor, nn

from lightning_prune.criteria.statistics import GateGradients, MovementScores, WeightGradients
from lightning_prune.surgery.plan import Plan

NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]


def squares(weight: Tensor, gradient: Tensor) -> Tensor:
    return gradient.square()


def product(weight: Tensor, gradient: Tensor) -> Tensor:
    return weight * gradient


def observing(net: nn.Module, every_n_steps: int = 1, names: list[str] | None = None) -> WeightGradients:
    statistics = WeightGradients(squares, every_n_steps)
    statistics.attach(net, parameters=NAMES if names is None else names)
    return statistics


def test_the_square_is_taken_step_by_step() -> None:
    net = by_hand()
    statistics = observing(net)
    for scale in (1.0, -3.0):
        one_step(statistics, net, scale * net(X).sum())
    # the gradients are (6, 1) and -3 times that: squares add up to 10 times the first, the sum would give 4 times
    assert statistics.totals["1.weight"].tolist() == [[360, 10]]
    assert statistics.steps == 2


def test_weights_are_those_before_the_step() -> None:
    net = by_hand()
    statistics = WeightGradients(product)
    statistics.attach(net, parameters=["1.bias"])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(3):  # the bias is 0, -0.5 and -1, its gradient always 1
        net(X).sum().backward()
        statistics.before_optimizer_step({id(net[1].bias)})
        optimizer.step()
        optimizer.zero_grad()
    assert statistics.totals["1.bias"].tolist() == [-1.5]


def test_an_accumulation_window_is_one_step() -> None:
    net = by_hand()
    statistics = observing(net)
    for batch, last in enumerate((False, True)):
        statistics.begin_step(batch)
        (net(X).sum() / 2).backward()
        statistics.commit()
        if last:
            statistics.before_optimizer_step({id(p) for p in net.parameters()})
        statistics.end_step()
    assert statistics.totals["1.weight"].tolist() == [[36, 1]]
    assert statistics.steps == 1


@pytest.mark.parametrize("window", [1, 2, 3])
def test_every_nth_step_is_taken_in_however_long_the_windows(window: int) -> None:
    """Batches that end a window may never be multiples of n."""
    net = by_hand()
    statistics = observing(net, every_n_steps=2)
    for batch in range(4 * window):
        statistics.begin_step(batch)
        ((batch // window + 1) * net(X).sum() / window).backward()
        if (batch + 1) % window == 0:
            statistics.before_optimizer_step({id(p) for p in net.parameters()})
            net.zero_grad()
        statistics.end_step()
    assert statistics.steps == 2
    torch.testing.assert_close(statistics.totals["1.bias"], torch.tensor([1.0 + 9.0]))  # steps 1 and 3


def test_every_nth_step_of_each_optimizer() -> None:
    net = by_hand()
    statistics = observing(net, every_n_steps=2)
    for step in range(4):
        statistics.begin_step(step)
        one_step(statistics, net, net(X).sum(), [net[0], net[1]] if step % 2 else [net[0]])
    assert statistics.totals["0.bias"].tolist() == [8, 2]  # of four steps the first and the third
    assert statistics.totals["1.bias"].tolist() == [1]  # of two the first


@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_steps_that_are_not_finite_are_dropped_whole(poison: float) -> None:
    net = by_hand()
    statistics = observing(net)
    for factor in (1.0, poison, 2.0):
        net(X).sum().backward()
        net[0].weight.grad[0, 1] *= factor
        statistics.before_optimizer_step({id(p) for p in net.parameters()})
        net.zero_grad()
    assert statistics.totals["0.weight"].tolist() == [[8, 16 + 64], [2, 8]]
    assert statistics.totals["1.bias"].tolist() == [2]
    assert statistics.steps == 2


def test_the_loss_scale_is_divided_out() -> None:
    net = by_hand()
    statistics = observing(net)
    (net(X).sum() * 1024).backward()
    gradient = net[1].weight.grad.clone()
    statistics.before_optimizer_step({id(p) for p in net.parameters()}, 1024.0)
    assert statistics.totals["1.weight"].tolist() == [[36, 1]]
    assert torch.equal(net[1].weight.grad, gradient)  # the optimizer's own is not touched


def test_only_parameters_of_the_optimizer_that_steps() -> None:
    net = by_hand()
    statistics = observing(net)
    net(X).sum().backward()
    statistics.before_optimizer_step({id(p) for p in net[1].parameters()})
    assert statistics.totals.keys() == {"1.weight", "1.bias"}
    assert statistics.unseen() == ["0.weight"]  # a bias in front of a norm may never get a gradient
    statistics.before_optimizer_step({id(p) for p in net[0].parameters()})
    assert statistics.unseen() == []


def test_sparse_gradients_of_embeddings() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    statistics = observing(table, names=["weight"])
    for rows in ([0, 2, 2], [2]):
        table(torch.tensor(rows)).sum().backward()
        assert table.weight.grad.is_sparse
        statistics.before_optimizer_step({id(table.weight)}, loss_scale=0.5)
        table.zero_grad()
    assert statistics.totals["weight"].tolist() == [[4, 4], [0, 0], [16 + 4, 16 + 4], [0, 0]]


def test_half_precision_is_summed_in_float32() -> None:
    layer = nn.Linear(1, 1, bias=False).bfloat16()
    statistics = observing(layer, names=["weight"])
    for _ in range(600):  # sums of ones would stand still at 256
        layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        statistics.before_optimizer_step({id(layer.weight)})
        layer.zero_grad()
    assert statistics.totals["weight"].item() == 600
    assert statistics.totals["weight"].dtype == torch.float32


def test_calibrating_takes_every_backward_pass_by_itself() -> None:
    """Gradients pile up in the parameters; and the first pass does not reach the first layer."""
    net = by_hand()
    statistics = observing(net)
    with statistics.calibrating():
        net[1](torch.tensor([[6.0, 1.0]])).sum().backward()
        assert "0.weight" not in statistics.totals
        net(X).sum().backward()
        (2 * net(X).sum()).backward()
    net(X).sum().backward()  # this one is not observed
    assert net[1].weight.grad.tolist() == [[30, 5]]
    assert statistics.totals["1.weight"].tolist() == [[36 * 6, 6]]  # 1 + 1 + 4, not (1 + 1 + 2)²
    assert statistics.totals["0.bias"].tolist() == [4 * 5, 5]
    assert statistics.steps == 3


def test_calibrating_with_everything_frozen() -> None:
    net = by_hand().requires_grad_(False)
    statistics = observing(net)
    with statistics.calibrating():
        net(X)
    assert statistics.totals == {}


# ---- events, states


@pytest.mark.parametrize("lasting", [False, True])
def test_other_pruners_cut_the_totals(lasting: bool) -> None:
    net = by_hand()
    statistics = MovementScores() if lasting else WeightGradients(lambda weight, gradient: -weight * gradient)
    statistics.attach(net, parameters=NAMES)
    assert statistics.lasting is lasting
    net(X).sum().backward()
    statistics.before_optimizer_step({id(p) for p in net.parameters()})
    kept = torch.tensor([1])
    statistics.follow(Plan(keep={"0.weight": {0: kept}, "0.bias": {0: kept}, "1.weight": {1: kept}}))
    assert {name: total.tolist() for name, total in statistics.totals.items()} == {
        "0.weight": [[3, -2]], "0.bias": [0], "1.weight": [[1]], "1.bias": [0],
    }  # fmt: skip
    statistics.follow(Plan(removed_modules=("0",)))
    assert statistics.totals.keys() == {"1.weight", "1.bias"}


def test_a_state_goes_through_a_file_and_does_not_change() -> None:
    net = by_hand()
    statistics = observing(net, every_n_steps=2)
    one_step(statistics, net, net(X).sum())
    state = statistics.state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    one_step(statistics, net, net(X).sum())
    one_step(statistics, net, net(X).sum())
    buffer.seek(0)
    resumed = observing(net, every_n_steps=2)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert resumed.totals["1.weight"].tolist() == state["totals"]["1.weight"].tolist() == [[36, 1]]
    one_step(resumed, net, net(X).sum())  # the second step, which is left out here, too
    assert resumed.steps == 1
    one_step(resumed, net, net(X).sum())
    assert resumed.totals["1.weight"].tolist() == statistics.totals["1.weight"].tolist() == [[72, 2]]
    resumed.reset()
    assert (resumed.totals, resumed.steps) == ({}, 0)
    one_step(resumed, net, net(X).sum())
    assert resumed.steps == 1


def test_gates_square_the_sum_of_both_products() -> None:
    norm = nn.BatchNorm1d(2)
    statistics = GateGradients()
    statistics.attach(nn.Sequential(nn.Linear(2, 2), norm), parameters=["0.weight", "1.weight", "1.bias"])
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
        norm.bias.copy_(torch.tensor([5.0, -1.0]))
    assert statistics.unseen() == ["1.weight"]
    for sign in (1.0, -1.0):
        norm.weight.grad, norm.bias.grad = sign * torch.tensor([1.0, 1.0]), sign * torch.tensor([1.0, 3.0])
        statistics.before_optimizer_step({id(p) for p in norm.parameters()})
    assert statistics.totals.keys() == {"1.weight"}
    assert statistics.totals["1.weight"].tolist() == [2 * 7**2, 0]  # 2 + 5 and 3 - 3
    assert statistics.unseen() == []
