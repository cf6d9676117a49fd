"""WeightTaylor, SNIP, Movement, Fisher and GateTaylor against numbers that can be followed by hand."""

import pickle
from dataclasses import replace
from math import exp

import pytest
import torch
from helpers.gathering import X, by_hand, gather
from torch import Tensor, nn

from lightning_prune.criteria import (
    SNIP,
    CannotScoreError,
    Criterion,
    Fisher,
    GateTaylor,
    Movement,
    Scoring,
    WeightTaylor,
)

WEIGHTS = {  # of the first matrix, its bias, and the second matrix
    WeightTaylor(): ([[4, 64], [9, 4]], [4, 0], [[144, 1]]),
    Fisher(): ([[2, 32], [4.5, 2]], [2, 0], [[72, 0.5]]),
    SNIP(): ([[2, 8], [3, 2]], [2, 0], [[12, 1]]),
    Movement(): ([[-2, -8], [3, -2]], [-2, 0], [[-12, 1]]),
}
UNITS = {
    WeightTaylor(): {"sum": [216, 14], "mean": [72, 14 / 3], "max": [144, 13], "first": [68, 13]},
    Fisher(): {"sum": [108, 7], "mean": [36, 7 / 3], "max": [72, 6.5], "first": [34, 6.5]},
    SNIP(): {"sum": [24, 6], "mean": [8, 2], "max": [12, 5], "first": [10, 5]},
    # a unit has two weights, a bias and one weight that reads it
    Movement(): {"sum": [-6, 0.5], "mean": [-2, 0.5 / 3], "max": [-0.5, 0.25], "first": [-2.5, 0.25]},
}
CRITERIA = pytest.mark.parametrize("criterion", list(WEIGHTS), ids=repr)


@CRITERIA
def test_weights_by_hand(criterion: Criterion) -> None:
    scoring, _ = gather(criterion, by_hand(), [X])
    for name, expected in zip(("0.weight", "0.bias", "1.weight"), WEIGHTS[criterion], strict=True):
        assert criterion.score_weights(name, scoring).tolist() == expected, name


@CRITERIA
@pytest.mark.parametrize("how", ["sum", "mean", "max", "first"])
def test_units_by_hand(criterion: Criterion, how: str) -> None:
    scoring, groups = gather(criterion, by_hand(), [X])
    found = criterion.score_units(groups["0.weight"], replace(scoring, aggregate=how))
    expected = torch.tensor(UNITS[criterion][how], dtype=torch.float32)
    torch.testing.assert_close(found, expected / expected.mean() if isinstance(criterion, SNIP) else expected)


@pytest.mark.parametrize(
    ("criterion", "expected"), [(WeightTaylor(), 5.0), (Fisher(), 2.5), (SNIP(), 1.0), (Movement(), 1.0)], ids=repr
)
def test_two_steps_of_different_sign(criterion: Criterion, expected: float) -> None:
    """w = 1 with the gradients 1 and -2: squares add up to 5, products to -1."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.ones_(net[0].weight)
    scoring, _ = gather(criterion, nn.Sequential(net, nn.Identity()), [torch.tensor([[1.0]]), torch.tensor([[-2.0]])])
    assert criterion.score_weights("0.0.weight", scoring) == expected


def test_a_penalty_lowers_the_scores_of_movement() -> None:
    """Steps of a weight of 1 with the gradients 1 and -2, each less λ · σ(s) · (1 − σ(s))."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.ones_(net[0].weight)
    batches = [torch.tensor([[1.0]]), torch.tensor([[-2.0]])]
    first = -1.0 - 0.4 * 0.5 * 0.5
    share = 1 / (1 + exp(-first))
    for count, expected in ((1, first), (2, first + 2.0 - 0.4 * share * (1 - share))):
        scoring, _ = gather(Movement(penalty=0.4), nn.Sequential(net, nn.Identity()), batches[:count])
        assert Movement(0.4).score_weights("0.0.weight", scoring).item() == pytest.approx(expected)


def test_the_penalty_of_movement_is_that_of_autograd() -> None:
    torch.manual_seed(0)
    net, batches = nn.Linear(3, 2).double(), torch.randn(4, 5, 3).double()
    scores = {name: torch.zeros_like(p, requires_grad=True) for name, p in net.named_parameters()}
    descent = torch.optim.SGD(scores.values(), lr=1.0)
    for batch in batches:  # the scores are differentiated straight through the mask, which is all ones
        weights = {name: p.detach() * (1 + scores[name] - scores[name].detach()) for name, p in net.named_parameters()}
        loss = torch.func.functional_call(net, weights, batch).sum()
        (loss + 0.3 * sum(score.sigmoid().sum() for score in scores.values())).backward()
        descent.step()
        descent.zero_grad()
    scoring, _ = gather(Movement(penalty=0.3), nn.Sequential(net, nn.Identity()), batches)
    for name, score in scores.items():
        found = scoring.statistics[f"0.{name}"]
        torch.testing.assert_close(found.double(), score.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("penalty", [-1, float("nan"), float("inf"), True, "much"])
def test_the_penalty_of_movement_is_checked(penalty: object) -> None:
    with pytest.raises(ValueError, match=r"^Movement penalty=.* must be a finite number of at least 0$"):
        Movement(penalty)


class Residual(nn.Module):
    """Two layers write to one stream of 3 channels, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
        self.conv, self.bn2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)
        for norm in (self.bn1, self.bn2):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor, gates: tuple[Tensor, Tensor] | None = None) -> Tensor:
        one, other = (gate.view(1, 3, 1, 1) for gate in gates) if gates else (1.0, 1.0)
        x = (one * self.bn1(self.stem(x))).tanh()
        return self.head((x + other * self.bn2(self.conv(x))).square().mean((2, 3)))


PARTS = [  # every (tensor, dimension) in which a unit of the stream lives
    ("stem.weight", 0), ("stem.bias", 0), ("bn1.weight", 0), ("bn1.bias", 0), ("conv.weight", 1), ("conv.weight", 0),
    ("bn2.weight", 0), ("bn2.bias", 0), ("head.weight", 1),
]  # fmt: skip


@CRITERIA
def test_every_weight_of_a_residual_unit_counts(criterion: Criterion) -> None:
    """Both makers, both norms and all readers, in float64 and unit by unit."""
    torch.manual_seed(1)
    net, batch = Residual(), torch.randn(5, 2, 4, 4)
    scoring, groups = gather(criterion, net, [batch])
    found = criterion.score_units(groups["stem.weight"], scoring)
    net = net.double()
    net(batch.double()).sum().backward()
    terms = {WeightTaylor: lambda p: p.square(), Fisher: lambda p: p.square() / 2, SNIP: lambda p: p.abs()}
    term = terms.get(type(criterion), lambda p: -p)
    all_expected = []
    for unit in range(3):
        expected, count = 0.0, 0
        for name, dim in PARTS:
            parameter = net.get_parameter(name)
            values = term((parameter * parameter.grad).detach()).select(dim, unit)
            expected, count = expected + float(values.sum()), count + values.numel()
        all_expected.append(expected / count if isinstance(criterion, Movement) else expected)
    mean = sum(all_expected) / 3 if isinstance(criterion, SNIP) else 1.0
    assert found.tolist() == pytest.approx([value / mean for value in all_expected], rel=1e-4, abs=1e-5)


# ---- gates behind batch norms


@pytest.mark.parametrize("how", ["sum", "mean", "max", "first"])
def test_gates_are_those_that_multiply(how: str) -> None:
    """The derivative by a factor of 1 behind each norm, over two steps of which the signs must not cancel."""
    torch.manual_seed(1)
    net, batches = Residual(), [torch.randn(5, 2, 4, 4) for _ in range(2)]
    scoring, groups = gather(GateTaylor(), net, batches)
    squares = [torch.zeros(3, dtype=torch.double), torch.zeros(3, dtype=torch.double)]
    net = net.double()
    for batch in batches:
        gates = tuple(torch.ones(3, dtype=torch.double, requires_grad=True) for _ in range(2))
        for square, gradient in zip(squares, torch.autograd.grad(net(batch.double(), gates).sum(), gates), strict=True):
            square += gradient.square()
    first, second = squares
    expected = {"sum": first + second, "mean": (first + second) / 2, "max": first.maximum(second), "first": first}
    found = GateTaylor().score_units(groups["stem.weight"], replace(scoring, aggregate=how))
    torch.testing.assert_close(found, expected[how].float(), rtol=1e-4, atol=1e-6)


def test_gates_need_a_norm_that_is_trained() -> None:
    net = Residual()
    scoring, groups = gather(GateTaylor(), net, [torch.randn(5, 2, 4, 4)])
    net.bn1.weight.requires_grad_(False)
    found = GateTaylor().score_units(groups["stem.weight"], scoring)
    torch.testing.assert_close(found, scoring.statistics["bn2.weight"])  # the other speaks for both
    net.bn2.weight.requires_grad_(False)
    with pytest.raises(CannotScoreError, match=r"^no batch norm with a trained scale follows these channels$"):
        GateTaylor().check(groups["stem.weight"], scoring)


# ---- what cannot be scored, and arguments


@CRITERIA
def test_parameters_without_a_gradient_take_no_part(criterion: Criterion) -> None:
    net = by_hand()
    net[0].weight.requires_grad_(False)
    scoring, groups = gather(criterion, net, [X])
    found = criterion.score_units(groups["0.weight"], scoring)
    expected = criterion.score_weights("0.bias", scoring) + criterion.score_weights("1.weight", scoring)[0]
    share = {Movement: 2.0, SNIP: expected.mean()}.get(type(criterion), 1.0)
    torch.testing.assert_close(found, expected / share)


@CRITERIA
def test_frozen_groups_cannot_be_scored(criterion: Criterion) -> None:
    net = by_hand()
    scoring, groups = gather(criterion, net, [X])
    criterion.check(groups["0.weight"], scoring)
    net.requires_grad_(False)
    with pytest.raises(CannotScoreError, match=r"^all weights of these channels are frozen, so they get"):
        criterion.check(groups["0.weight"], scoring)


@CRITERIA
def test_what_no_gradient_reached_is_named(criterion: Criterion) -> None:
    scoring, groups = gather(criterion, by_hand(), [X])
    empty = Scoring(scoring.module, scoring.tensors)
    message = rf"^{type(criterion).__name__} needs gradients of '0.weight', but none were gathered since the last"
    with pytest.raises(ValueError, match=message):
        criterion.score_weights("0.weight", empty)
    with pytest.raises(ValueError, match=message):
        criterion.score_units(groups["0.weight"], empty)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2"])
@pytest.mark.parametrize("cls", [WeightTaylor, GateTaylor, Fisher])
def test_every_n_steps_is_checked(cls: type, n: object) -> None:
    with pytest.raises(ValueError, match=rf"^{cls.__name__} every_n_steps={n!r} must be an integer of at least 1$"):
        cls(every_n_steps=n)
    assert cls(every_n_steps=3).statistics().every_n_steps == 3


@pytest.mark.parametrize("criterion", [*WEIGHTS, GateTaylor()], ids=repr)
def test_collectors_can_be_pickled(criterion: Criterion) -> None:
    """A Trainer that spawns its ranks pickles callbacks."""
    statistics = criterion.statistics()
    statistics.totals = {"w": torch.ones(2)}
    assert pickle.loads(pickle.dumps(statistics)).totals["w"].tolist() == [1, 1]
