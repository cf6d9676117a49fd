"""When losses are differentiated twice; what of, the tests of the criteria say."""

import pytest
import torch
from helpers.gathering import one_step
from torch import Tensor, nn

from lightning_prune.coupling import find_coupling
from lightning_prune.criteria import GraSP, Hessian
from lightning_prune.criteria.statistics import ActivationGradient, Curvature
from lightning_prune.network.example_input import Example

BOTH = pytest.mark.parametrize("criterion", [Hessian(), GraSP()], ids=repr)


def make() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)


def loss_of(net: nn.Module, batch: Tensor) -> Tensor:
    return net(batch).square().sum()


def observing(criterion: Hessian | GraSP, net: nn.Module) -> Curvature:
    statistics = criterion.statistics()
    assert isinstance(statistics, Curvature)
    statistics.attach(net, parameters=[name for name, _ in net.named_parameters()])
    statistics.begin_step(0)
    return statistics


def test_the_training_goes_on_as_without() -> None:
    plain, batch = make()
    observed, _ = make()
    loss_of(plain, batch).backward()
    loss = loss_of(observed, batch)
    observing(Hessian(), observed).before_backward(loss)
    assert all(p.grad is None for p in observed.parameters())
    loss.backward()
    for one, other in zip(plain.parameters(), observed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@BOTH
def test_the_loss_scale_is_divided_out(criterion: Hessian | GraSP) -> None:
    net, batch = make()
    plain, scaled = observing(criterion, net), observing(criterion, net)
    plain.before_backward(loss_of(net, batch))
    scaled.before_backward(loss_of(net, batch) * 4096, 4096.0)
    for name, total in plain.totals.items():
        torch.testing.assert_close(scaled.totals[name], total)


def test_the_scale_saves_small_gradients_in_half_precision() -> None:
    """g is 2^-26, which float16 does not hold; 2^16 times as much it does."""
    layer = nn.Linear(1, 1, bias=False).half()
    nn.init.ones_(layer.weight)
    statistics = observing(Hessian(), layer)
    loss = layer(torch.ones(1, 1).half()).square().sum().float() * 2.0**-27
    statistics.before_backward(loss * 2.0**16, 2.0**16)
    assert statistics.totals["weight"].item() == 2.0**-26  # twice the factor


@BOTH
def test_what_is_not_finite_is_dropped(criterion: Hessian | GraSP) -> None:
    net, batch = make()
    statistics = observing(criterion, net)
    one_step(statistics, net, loss_of(net, batch) * float("inf"))
    assert (statistics.totals, statistics.steps) == ({}, 0)
    statistics.begin_step(1)
    one_step(statistics, net, loss_of(net, batch))
    assert statistics.steps == 1


def test_only_every_nth_batch_is_differentiated() -> None:
    net, batch = make()
    statistics = observing(Hessian(every_n_steps=2), net)
    for number in range(4):
        statistics.begin_step(number)
        one_step(statistics, net, loss_of(net, batch))
    assert statistics.steps == 2


@BOTH
def test_linear_losses_have_no_curvature(criterion: Hessian | GraSP) -> None:
    layer = nn.Linear(2, 1)
    statistics = observing(criterion, layer)
    one_step(statistics, layer, layer(torch.ones(1, 2)).sum())
    assert statistics.totals["weight"].tolist() == [[0, 0]]
    assert statistics.unseen() == []


@BOTH
def test_frozen_and_unused_parameters_are_left_out(criterion: Hessian | GraSP) -> None:
    net, batch = make()
    net[0].weight.requires_grad_(False)
    net.add_module("unused", nn.Linear(2, 2))
    statistics = observing(criterion, net)
    statistics.before_backward(net[2](net[1](net[0](batch))).square().sum())
    assert statistics.totals.keys() == {"0.bias", "2.weight", "2.bias"}
    assert statistics.unseen() == ["0.weight", "unused.weight"]


@pytest.mark.parametrize("first", ["curvature", "activations"])
def test_activations_that_another_pruner_observes_see_the_backward_pass_alone(first: str) -> None:
    net, batch = make()
    groups = list(find_coupling(net, Example.of(batch)).groups.values())
    found = []
    for both in (False, True):
        activations, curvature = ActivationGradient(), observing(Hessian(), net)
        activations.attach(net, groups)
        activations.begin_step(0)
        loss = loss_of(net, batch)
        pair = [activations, curvature] if first == "activations" else [curvature, activations]
        for statistics in pair if both else [activations]:
            statistics.before_backward(loss)
        loss.backward()
        activations.commit()
        activations.detach()
        found.append(activations.totals["0"])
    torch.testing.assert_close(found[1], found[0])
