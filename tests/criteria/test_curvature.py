"""Hessian and GraSP against the whole Hessian in float64."""

from dataclasses import replace

import pytest
import torch
from helpers.gathering import gather, one_step
from torch import Tensor, nn
from torch.func import functional_call

from lightning_prune.criteria import CannotScoreError, GraSP, Hessian, Scoring


class Net(nn.Module):
    """Bends in every direction, up and down."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh()).sin()


NAMES = ["a.weight", "a.bias", "b.weight", "b.bias"]


def hessian_of(net: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The whole Hessian of the sum of the outputs, its gradient, and the weights, all in one row and in float64."""
    parameters = {name: p.detach().double() for name, p in net.named_parameters()}
    sizes = [p.numel() for p in parameters.values()]

    def loss(row: Tensor) -> Tensor:
        parts = row.split(sizes)
        own = {n: part.view(p.shape) for part, (n, p) in zip(parts, parameters.items(), strict=True)}
        return functional_call(net, own, (batch.double(),)).sum()

    row = torch.cat([p.flatten() for p in parameters.values()]).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(row), row)
    return torch.autograd.functional.hessian(loss, row.detach()), gradient, row.detach()


def in_one_row(totals: dict[str, Tensor]) -> Tensor:
    return torch.cat([totals[name].flatten() for name in NAMES]).double()


def make() -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    return Net(), torch.randn(5, 3)


def test_grasp_is_w_times_hessian_times_gradient() -> None:
    net, batch = make()
    scoring, _ = gather(GraSP(), net, [batch])
    hessian, gradient, weights = hessian_of(net, batch)
    found = in_one_row({name: GraSP().score_weights(name, scoring) for name in NAMES})
    torch.testing.assert_close(found, weights * (hessian @ gradient), rtol=1e-4, atol=1e-5)


def test_removing_a_weight_of_low_grasp_score_raises_the_gradient() -> None:
    """To first order the squared norm of the gradient changes by -2 w Hg: here for a weight that is almost zero."""
    net, batch = make()
    with torch.no_grad():
        net.a.weight[0, 0] = 1e-3
    scoring, _ = gather(GraSP(), net, [batch])
    score = float(GraSP().score_weights("a.weight", scoring)[0, 0])
    before = hessian_of(net, batch)[1].square().sum()
    with torch.no_grad():
        net.a.weight[0, 0] = 0
    change = hessian_of(net, batch)[1].square().sum() - before
    assert float(change) == pytest.approx(-2 * score, rel=0.02)


def test_hutchinson_is_z_times_hessian_times_z() -> None:
    net, batch = make()
    statistics = Hessian(seed=3).statistics()
    statistics.attach(net, parameters=NAMES)
    signs = torch.cat([statistics._vector(name, net.get_parameter(name)).flatten() for name in NAMES]).double()
    assert set(signs.tolist()) == {-1.0, 1.0}
    statistics.begin_step(0)
    one_step(statistics, net, net(batch).sum())
    hessian, _, _ = hessian_of(net, batch)
    torch.testing.assert_close(in_one_row(statistics.totals), signs * (hessian @ signs), rtol=1e-4, atol=1e-5)


def test_hutchinson_finds_the_diagonal() -> None:
    """In the mean over many draws; the variance of an entry is the sum of the squares beside it."""
    net, batch = make()
    statistics = Hessian().statistics()
    statistics.attach(net, parameters=NAMES)
    draws = 400
    for number in range(draws):
        statistics.begin_step(number)
        one_step(statistics, net, net(batch).sum())
    assert statistics.steps == draws
    hessian, _, _ = hessian_of(net, batch)
    beside = hessian - hessian.diag().diag()
    deviation = beside.square().sum(1).sqrt() / draws**0.5
    errors = (in_one_row(statistics.totals) / draws - hessian.diag()).abs() / deviation
    assert float(errors.max()) < 4
    assert 0.4 < float(errors.mean()) < 1.2  # of a normal distribution: 0.8


def test_a_diagonal_hessian_is_found_at_once() -> None:
    """L = 3a² - 2b² + 5c has h = (6, -4, 0), whatever the signs; the scores are |h| w² / 2."""
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, 7.0, 3.0]]))
    statistics = Hessian().statistics()
    statistics.attach(layer, parameters=["weight"])
    statistics.begin_step(0)
    a, b, c = layer.weight[0]
    one_step(statistics, layer, 3 * a**2 - 2 * b**2 + 5 * c)
    assert statistics.totals["weight"].tolist() == [[6, -4, 0]]
    scoring = Scoring(layer, dict(layer.named_parameters()), statistics.totals)
    assert Hessian().score_weights("weight", scoring).tolist() == [[12, 98, 0]]


@pytest.mark.parametrize("how", ["sum", "max", "first"])
@pytest.mark.parametrize("criterion", [Hessian(), GraSP()], ids=repr)
def test_units_have_the_sums_of_their_weights(criterion: Hessian | GraSP, how: str) -> None:
    net, batch = make()
    scoring, groups = gather(criterion, net, [batch])
    scores = {name: criterion.score_weights(name, scoring) for name in NAMES}
    sums = torch.stack([scores["a.weight"].sum(1), scores["a.bias"], scores["b.weight"].sum(0)])
    expected = {"sum": sums.sum(0), "max": sums.amax(0), "first": sums[0]}[how]
    expected = expected / expected.abs().mean() if isinstance(criterion, GraSP) else expected
    torch.testing.assert_close(criterion.score_units(groups["a.weight"], replace(scoring, aggregate=how)), expected)
    net.requires_grad_(False)
    with pytest.raises(CannotScoreError, match=r"^all weights of these channels are frozen"):
        criterion.check(groups["a.weight"], scoring)


def test_other_seeds_make_other_signs() -> None:
    found = []
    for seed in (0, 0, 1):
        net, batch = make()
        found.append(gather(Hessian(seed=seed), net, [batch])[0].statistics["a.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_every_n_steps_is_checked() -> None:
    with pytest.raises(ValueError, match=r"^Hessian every_n_steps=0 must be an integer of at least 1$"):
        Hessian(every_n_steps=0)
