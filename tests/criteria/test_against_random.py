"""A criterion that does not beat Random on a real task is broken."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_prune import prune_once
from lightning_prune.budgets import Params, Ratio
from lightning_prune.criteria import BatchNormScale, Criterion, Magnitude, Random, Taylor
from lightning_prune.tasks import DigitsData, SmallResNet

pytestmark = pytest.mark.slow

BUDGETS = (Ratio(0.25), Params(keep=0.6))


@pytest.fixture(scope="module")
def digits() -> DigitsData:
    data = DigitsData()
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def trained(digits: DigitsData) -> nn.Module:
    torch.manual_seed(0)
    network = SmallResNet()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(5):
        for images, labels in digits.train_dataloader():
            optimizer.zero_grad()
            cross_entropy(network(images), labels).backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, data: DigitsData) -> float:
    hits = torch.cat([network(images).argmax(1) == labels for images, labels in data.val_dataloader()])
    return float(hits.float().mean())


def accuracy_left(criterion: Criterion, trained: nn.Module, data: DigitsData) -> float:
    """Mean accuracy over the budgets, without fine-tuning."""

    def calibrate(network: nn.Module) -> None:
        for images, labels in data.train_dataloader():
            cross_entropy(network(images), labels).backward()

    left = []
    for budget in BUDGETS:
        network = copy.deepcopy(trained)
        prune_once(network, torch.zeros(1, 1, 8, 8), criterion=criterion, budget=budget, calibrate=calibrate)
        left.append(accuracy(network, data))
    return sum(left) / len(left)


@pytest.fixture(scope="module")
def by_chance(trained: nn.Module, digits: DigitsData) -> float:
    return sum(accuracy_left(Random(seed), trained, digits) for seed in range(5)) / 5


@pytest.mark.parametrize("criterion", [Magnitude(1), Magnitude(2), BatchNormScale(), Taylor()], ids=repr)
def test_beats_random_channels(criterion: Criterion, trained: nn.Module, digits: DigitsData, by_chance: float) -> None:
    assert accuracy(trained, digits) > 0.95
    assert accuracy_left(criterion, trained, digits) > by_chance + 0.03
