from dataclasses import replace

import pytest
import torch
from helpers.gathering import X, by_hand, gather
from torch import nn

from lightning_prune import Weights, prune_once
from lightning_prune.budgets import Sparsity
from lightning_prune.criteria import LAMP
from lightning_prune.criteria.lamp import lamp


def test_weights_by_hand() -> None:
    scoring, _ = gather(LAMP(), by_hand(), [X])  # squares 1, 4, 9, 1: the first of the equal ones has all below it
    expected = torch.tensor([[1 / 15, 4 / 13], [1.0, 1 / 14]])
    torch.testing.assert_close(LAMP().score_weights("0.weight", scoring), expected)
    torch.testing.assert_close(LAMP().score_weights("1.weight", scoring), torch.tensor([[1.0, 1 / 5]]))
    assert LAMP().score_weights("1.bias", scoring).tolist() == [0]  # nothing but a zero


@pytest.mark.parametrize(
    ("how", "expected"),
    [  # squared norms (5, 10) of the rows, (1, 0) of the bias, (4, 1) of the columns
        ("sum", [10 / 21, 1]), ("mean", [10 / 21, 1]), ("max", [5 / 15, 1]), ("first", [5 / 15, 1]),
    ],
)  # fmt: skip
def test_units_by_hand(how: str, expected: list[float]) -> None:
    scoring, groups = gather(LAMP(), by_hand(), [X])
    found = LAMP().score_units(groups["0.weight"], replace(scoring, aggregate=how))
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_definition_one_by_one() -> None:
    torch.manual_seed(0)
    weights = torch.randn(40)
    scores = lamp(weights.square())
    for weight, score in zip(weights.double(), scores, strict=True):
        not_smaller = weights.double()[weights.double().abs() >= weight.abs()]
        assert float(score) == pytest.approx(float(weight**2 / not_smaller.square().sum()), rel=1e-5)


def test_what_is_masked_already_stays_last_and_changes_nothing() -> None:
    torch.manual_seed(0)
    squares = torch.randn(3, 5).square()
    with_zeros = torch.cat([squares, torch.zeros(2, 5)])
    torch.testing.assert_close(lamp(with_zeros)[:3], lamp(squares))
    assert not lamp(with_zeros)[3:].any()


def test_the_largest_weight_of_every_layer_survives() -> None:
    """Global magnitude would take all of the second layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with torch.no_grad():
        net[1].weight.mul_(1e-3)
    largest = net[1].weight.abs().argmax()
    prune_once(net, torch.zeros(1, 8), granularity=Weights(), criterion=LAMP(), budget=Sparsity(0.9, per_layer=False))
    assert net[1].weight.flatten()[largest] != 0
    assert int(net[0].weight.count_nonzero() + net[1].weight.count_nonzero()) < 20
