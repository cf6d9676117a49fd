from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.coupling import Group, find_coupling
from lightning_prune.criteria import BatchNormScale, CannotScoreError, Scoring
from lightning_prune.criteria.batchnorm import batch_norm_scales
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import named_tensors


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 1)
        self.bn1 = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn2 = nn.BatchNorm2d(3)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.stem(x)).relu()
        return self.head(x + self.bn2(self.conv(x)))


def first_group(net: nn.Module, example: Tensor) -> Group:
    return next(iter(find_coupling(net, Example.of(example)).groups.values()))


def scoring_of(net: nn.Module) -> Scoring:
    return Scoring(net, dict(named_tensors(net)))


def test_one_norm_is_its_absolute_scale() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0]))
    group = first_group(net, torch.zeros(2, 1, 4, 4))
    assert BatchNormScale().score_units(group, scoring_of(net)).tolist() == [0.5, 2.0, 0.0]


def test_several_norms_are_averaged() -> None:
    net = Residual()
    with torch.no_grad():
        net.bn1.weight.copy_(torch.tensor([1.0, -2.0, 3.0]))
        net.bn2.weight.copy_(torch.tensor([3.0, 4.0, -5.0]))
    group = first_group(net, torch.zeros(2, 1, 4, 4))
    assert BatchNormScale().score_units(group, scoring_of(net)).tolist() == [2.0, 3.0, 4.0]


def test_several_scales_of_a_unit_are_averaged() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    with torch.no_grad():
        net[2].weight.copy_(torch.tensor([1.0, 2.0, 3.0, -4.0, 0.0, 0.0, 0.0, 2.0]))
    group = first_group(net, torch.zeros(2, 1, 2, 2))
    assert BatchNormScale().score_units(group, scoring_of(net)).tolist() == [2.5, 0.5]


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(3, affine=False), nn.PReLU(3)], ids=repr)
def test_channels_without_a_scale_cannot_be_scored(norm: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 1), norm, nn.Conv2d(3, 2, 1))
    group = first_group(net, torch.zeros(2, 1, 4, 4))
    with pytest.raises(CannotScoreError) as error:
        BatchNormScale().check(group, scoring_of(net))
    assert str(error.value) == "no batch norm with a scale follows these channels"


def test_every_batch_norm_with_a_scale_is_found() -> None:
    net = Residual()
    assert list(batch_norm_scales(net)) == ["bn1.weight", "bn2.weight"]
    assert batch_norm_scales(net)["bn2.weight"] is net.bn2.weight
    assert list(batch_norm_scales(nn.BatchNorm1d(2))) == ["weight"]
    assert batch_norm_scales(nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.LayerNorm(3))) == {}


@pytest.mark.parametrize(
    ("how", "expected"), [("sum", [2, 3, 4]), ("mean", [2, 3, 4]), ("max", [3, 4, 5]), ("first", [1, 2, 3])]
)
def test_several_norms_by_hand(how: str, expected: list[float]) -> None:
    net = Residual()
    with torch.no_grad():
        net.bn1.weight.copy_(torch.tensor([1.0, -2.0, 3.0]))
        net.bn2.weight.copy_(torch.tensor([3.0, 4.0, -5.0]))
    group = first_group(net, torch.zeros(2, 1, 4, 4))
    assert BatchNormScale().score_units(group, replace(scoring_of(net), aggregate=how)).tolist() == expected
