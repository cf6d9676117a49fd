from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.coupling import Group, Member, find_coupling
from lightning_prune.criteria import CannotScoreError, GeometricMedian, Scoring
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import named_tensors


def scored(net: nn.Module, example: Tensor, name: str, how: str = "sum") -> Tensor:
    group = find_coupling(net, Example.of(example)).groups[name]
    scoring = Scoring(net, dict(named_tensors(net)), aggregate=how)  # type: ignore[arg-type]
    GeometricMedian().check(group, scoring)
    return GeometricMedian().score_units(group, scoring)


def test_distances_by_hand() -> None:
    # from (0, 0), (3, 4) and (6, 8): 5 + 10, 5 + 5, 10 + 5; the mean is 40 / 3
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]))
    torch.testing.assert_close(scored(net, torch.zeros(2, 2), "0.weight"), torch.tensor([1.125, 0.75, 1.125]))


class Stream(nn.Module):
    """A convolution and a transposed one write to the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(2, 4, 3, padding=1), nn.ConvTranspose2d(2, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one(x) + self.other(x))


@pytest.mark.parametrize("how", ["sum", "mean", "max", "first"])
def test_every_maker_has_distances_of_its_own(how: str) -> None:
    torch.manual_seed(0)
    net = Stream()
    found = scored(net, torch.zeros(2, 2, 4, 4), "one.weight", how)
    sums = []
    for filters in (net.one.weight.detach().double(), net.other.weight.detach().double().transpose(0, 1)):
        sums.append(torch.tensor([sum(float((a - b).norm()) for b in filters) for a in filters]))
    total = {"sum": sums[0] + sums[1], "mean": sums[0] + sums[1], "max": sums[0].maximum(sums[1]), "first": sums[0]}
    torch.testing.assert_close(found, total[how] / total[how].mean())


def test_readers_biases_and_the_place_of_the_median_play_no_part() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    before = scored(net, torch.zeros(2, 3), "0.weight")
    with torch.no_grad():
        net[0].bias.fill_(7)
        net[1].weight.fill_(3)
        net[2].weight.fill_(5)
        net[0].weight.add_(torch.tensor([1.0, -2.0, 3.0]))  # all filters are moved
    torch.testing.assert_close(scored(net, torch.zeros(2, 3), "0.weight"), before)


def test_equal_filters_are_all_redundant() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    nn.init.ones_(net[0].weight)
    assert scored(net, torch.zeros(2, 3), "0.weight").tolist() == [0, 0, 0, 0]


def test_channels_without_a_maker_cannot_be_scored() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    member = Member("w", 1, torch.arange(3).reshape(3, 1), True)
    group, scoring = Group("w", (member,), ()), Scoring(nn.Identity(), {"w": weight})
    with pytest.raises(CannotScoreError, match=r"^no layer with a weight matrix makes these channels$"):
        GeometricMedian().check(group, scoring)
    GeometricMedian().check(replace(group, members=(replace(member, reads=False),)), scoring)
