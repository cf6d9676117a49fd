import math
import re

import pytest
import torch
from torch import nn

from lightning_prune.coupling import Coupling, Group, Member, find_coupling
from lightning_prune.criteria import Magnitude, Scoring
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import named_tensors


def network() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    ).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([3.0, -4.0, 0.0]).reshape(3, 1, 1, 1))
        net[0].bias.copy_(torch.tensor([100.0, 100.0, 100.0]))  # neither biases
        net[1].weight.copy_(torch.tensor([50.0, 60.0, 70.0]))  # nor norms count beside matrices
        net[5].weight.copy_(torch.tensor([[1.0, 2.0, 1.0], [-2.0, 1.0, -1.0]]))
    return net


def scores(criterion: Magnitude, net: nn.Module, coupling: Coupling, name: str) -> torch.Tensor:
    return criterion.score_units(coupling.groups[name], Scoring(net, dict(named_tensors(net))))


@pytest.mark.parametrize(
    ("p", "norms"),
    [(1, [3 + 3, 4 + 3, 0 + 2]), (2, [math.sqrt(9 + 5), math.sqrt(16 + 5), math.sqrt(0 + 2)])],
)
def test_channels_are_ranked_by_every_matrix_they_touch(p: int, norms: list[float]) -> None:
    net = network()
    coupling = find_coupling(net, Example.of(torch.zeros(2, 1, 4, 4, dtype=torch.float64)))
    found = scores(Magnitude(p), net, coupling, "0.weight")
    expected = torch.tensor(norms) / (sum(norms) / 3)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_weights_are_ranked_by_their_size() -> None:
    net = network()
    scoring = Scoring(net, dict(named_tensors(net)))
    for p in (1, 2):
        found = Magnitude(p).score_weights("5.weight", scoring)
        assert torch.equal(found, torch.tensor([[1.0, 2.0, 1.0], [2.0, 1.0, 1.0]]))
    assert torch.equal(Magnitude().score_weights("0.bias", scoring), torch.full((3,), 100.0))


def test_a_unit_owns_every_column_behind_a_flatten() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(2 * 4, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
        net[2].weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.5, 0.5, 0.5, 0.5]]))
    coupling = find_coupling(net, Example.of(torch.zeros(1, 1, 2, 2)))
    torch.testing.assert_close(scores(Magnitude(1), net, coupling, "0.weight"), torch.tensor([11.0, 3.0]) / 7)
    expected = torch.tensor([1 + 30.0, 1 + 1.0]).sqrt()
    torch.testing.assert_close(scores(Magnitude(2), net, coupling, "0.weight"), expected / expected.mean())


@pytest.mark.parametrize("p", [1, 2])
def test_the_scale_of_a_layer_does_not_matter(p: int) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    coupling = find_coupling(net, Example.of(torch.zeros(2, 4)))
    before = scores(Magnitude(p), net, coupling, "0.weight")
    with torch.no_grad():
        net[0].weight.mul_(1000)
        net[2].weight.mul_(1000)
    torch.testing.assert_close(scores(Magnitude(p), net, coupling, "0.weight"), before)
    assert before.mean().item() == pytest.approx(1)


def test_a_group_of_zeros_scores_zero() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    coupling = find_coupling(net, Example.of(torch.zeros(2, 4)))
    assert torch.equal(scores(Magnitude(), net, coupling, "0.weight"), torch.zeros(5))


@pytest.mark.parametrize("p", [0, 3, 1.5, "2", None])
def test_p_is_checked(p: object) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(f"Magnitude p={p!r} must be 1 or 2") + "$"):
        Magnitude(p)


@pytest.mark.parametrize(
    ("p", "how", "powers"),
    [
        (1, "sum", [6, 7, 2]),
        (1, "mean", [3, 3.5, 1]),
        (1, "max", [3, 4, 2]),
        (1, "first", [3, 4, 0]),
        (2, "sum", [9 + 5, 16 + 5, 2]),
        (2, "max", [9, 16, 2]),
        (2, "first", [9, 16, 0]),
    ],
)
def test_layers_are_taken_together_before_the_root(p: int, how: str, powers: list[float]) -> None:
    net = network()
    coupling = find_coupling(net, Example.of(torch.zeros(2, 1, 4, 4, dtype=torch.float64)))
    scoring = Scoring(net, dict(named_tensors(net)), aggregate=how)
    found = Magnitude(p).score_units(coupling.groups["0.weight"], scoring)
    expected = torch.tensor(powers) ** (1 / p)
    torch.testing.assert_close(found, expected / expected.mean())


def test_the_first_layer_is_the_one_that_makes_the_channels() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(2, 1, bias=False)
            self.first = nn.Linear(1, 2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x).relu())

    net = Backwards()
    with torch.no_grad():
        net.first.weight.copy_(torch.tensor([[1.0], [3.0]]))
        net.last.weight.copy_(torch.tensor([[5.0, 1.0]]))
    (group,) = find_coupling(net, Example.of(torch.zeros(1, 1))).groups.values()
    found = Magnitude().score_units(group, Scoring(net, dict(named_tensors(net)), aggregate="first"))
    torch.testing.assert_close(found, torch.tensor([0.5, 1.5]))


def test_a_group_without_parameters_scores_zero() -> None:
    net = nn.Module()
    net.register_buffer("table", torch.ones(3, 2))
    group = Group("table", (Member("table", 0, torch.arange(3).reshape(3, 1), False),), ())
    assert Magnitude().score_units(group, Scoring(net, dict(named_tensors(net)))).tolist() == [0, 0, 0]
