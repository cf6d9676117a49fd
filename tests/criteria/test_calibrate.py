"""One event without a Trainer: what `calibrate` may do."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune import Channels, Weights, prune_once
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.criteria import (
    APoZ,
    Criterion,
    Fisher,
    GraSP,
    Hessian,
    MeanActivation,
    Taylor,
    Wanda,
    WeightTaylor,
)

DATA = list(torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(1)))


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))


def loss_of(net: nn.Module, batch: Tensor) -> Tensor:
    return net(batch).square().mean()


def losses(net: nn.Module) -> list[Tensor]:
    return [loss_of(net, batch) for batch in DATA]


def generator(net: nn.Module) -> Iterator[Tensor]:
    for batch in DATA:
        yield loss_of(net, batch)


def backward_itself(net: nn.Module) -> float:
    for batch in DATA:
        loss = loss_of(net, batch)
        loss.backward()
    return loss.item()  # as functions that train do


def scores(criterion: Criterion, calibrate: Callable[[nn.Module], Any]) -> dict[str, Tensor]:
    net = make()
    report = prune_once(net, DATA[0], criterion=criterion, budget=Ratio(0.25), calibrate=calibrate)
    assert [layer.out_features for layer in (net[0], net[2])] == [6, 3]
    assert all(p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    return dict(report.scores)


@pytest.mark.parametrize("calibrate", [generator, backward_itself])
@pytest.mark.parametrize("criterion", [WeightTaylor(), Fisher(), Taylor()], ids=repr)
def test_losses_may_come_in_any_way(criterion: Criterion, calibrate: Callable[[nn.Module], Any]) -> None:
    expected, found = scores(criterion, losses), scores(criterion, calibrate)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values)


def test_every_loss_is_a_step_of_its_own() -> None:
    net = make().double()
    expected = torch.zeros(8, dtype=torch.double)
    for batch in DATA:
        loss = loss_of(net, batch.double())
        parameters = [net[0].weight, net[0].bias, net[2].weight]
        one, bias, other = (
            (p * g).detach().square() for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True)
        )
        expected += one.sum(1) + bias + other.sum(0)
    torch.testing.assert_close(scores(WeightTaylor(), losses)["0.weight"], expected.float())


@pytest.mark.parametrize("criterion", [Hessian(), GraSP()], ids=repr)
def test_losses_are_differentiated_twice(criterion: Criterion) -> None:
    expected = scores(criterion, losses)
    found = scores(criterion, generator)
    assert all(torch.equal(found[name], values) for name, values in expected.items())
    with pytest.raises(
        ValueError, match=r"^criterion \w+\(.*\) differentiates losses twice, and received no finite loss"
    ):
        scores(criterion, backward_itself)


@pytest.mark.parametrize("criterion", [APoZ(), MeanActivation()], ids=repr)
def test_forward_passes_are_enough_for_activations(criterion: Criterion) -> None:
    def forward(net: nn.Module) -> None:
        with torch.inference_mode():
            for batch in DATA:
                net(batch)

    expected, found = scores(criterion, losses), scores(criterion, forward)
    assert all(torch.equal(found[name], values) for name, values in expected.items())
    with pytest.raises(ValueError, match=r"^criterion \w+\(every_n_steps=1\) needs activations: pass calibrate=, a"):
        prune_once(make(), DATA[0], criterion=criterion)


@pytest.mark.parametrize("calibrate", [lambda net: net(DATA[0]), lambda net: {"out": net(DATA[0])}, losses])
def test_wanda_masks_after_a_forward_pass(calibrate: Callable[[nn.Module], Any]) -> None:
    net = make()
    with torch.no_grad():
        for layer in (net[0], net[2], net[4]):
            layer.bias.zero_()
    report = prune_once(
        net, DATA[0], granularity=Weights(), criterion=Wanda(), budget=Sparsity(0.5), calibrate=calibrate
    )
    assert {name: int(mask.sum()) for name, mask in report.plan.masks.items() if name.endswith("weight")} == {
        "0.weight": 12, "2.weight": 16, "4.weight": 4,
    }  # fmt: skip
    assert (net[2].weight != 0).sum(1).tolist() == [4] * 4


def test_a_loss_that_went_backward_already() -> None:
    def calibrate(net: nn.Module) -> Tensor:
        loss = loss_of(net, DATA[0])
        loss.backward()
        return loss

    net = make()
    with pytest.raises(ValueError, match=r"^calibrate= returned a loss whose backward pass has run already; let it "):
        prune_once(net, DATA[0], criterion=Fisher(), calibrate=calibrate)
    assert net[0].out_features == 8
    assert all(p.grad is None for p in net.parameters())


def test_other_errors_of_a_backward_pass_are_left_as_they_are() -> None:
    def calibrate(net: nn.Module) -> Tensor:
        loss = loss_of(net, DATA[0])
        loss.register_hook(lambda gradient: (_ for _ in ()).throw(RuntimeError("out of paper")))
        return loss

    with pytest.raises(RuntimeError, match=r"^out of paper$"):
        prune_once(make(), DATA[0], criterion=Fisher(), calibrate=calibrate)


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    def with_nan(net: nn.Module) -> Iterator[Tensor]:
        yield from generator(net)
        yield loss_of(net, DATA[0]) * float("nan")

    for criterion in (WeightTaylor(), Taylor(), Hessian()):
        expected, found = scores(criterion, generator), scores(criterion, with_nan)
        assert all(torch.equal(found[name], values) for name, values in expected.items()), criterion


def test_a_trial_leaves_everything_as_it_is() -> None:
    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    options = {"criterion": WeightTaylor(), "granularity": Channels(), "calibrate": losses, "dry_run": True}
    assert prune_once(net, DATA[0], **options).removes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
