"""MeanActivation and APoZ against numbers that can be followed by hand."""

from dataclasses import replace

import pytest
import torch
from helpers.gathering import gather
from torch import Tensor, nn

from lightning_prune.coupling import Group, Member
from lightning_prune.criteria import APoZ, CannotScoreError, Criterion, MeanActivation, Scoring

BOTH = pytest.mark.parametrize("criterion", [MeanActivation(), APoZ()], ids=repr)


def normalised(*values: float) -> Tensor:
    vector = torch.tensor(values, dtype=torch.float32)
    return vector / vector.norm()


def factors(*made: float) -> nn.Sequential:
    """Three channels that are multiples of one input pixel by pixel."""
    net = nn.Sequential(nn.Conv2d(1, len(made), 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * len(made), 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(made).reshape(-1, 1, 1, 1))
    return net


IMAGES = [torch.tensor([[[[1.0, 3.0], [-1.0, 5.0]]]]), torch.tensor([[[[-2.0, 0.0], [-1.0, -3.0]]]])]


def test_mean_activation_by_hand() -> None:
    # |x| is 10 over the first image and 6 over the second: a mean of 2 over 8 pixels, times the factor
    scoring, groups = gather(MeanActivation(), factors(1.0, -2.0, 0.5), IMAGES)
    assert scoring.statistics["0"].tolist() == [16, 32, 8]
    assert scoring.statistics["examples of 0"] == 8
    found = MeanActivation().score_units(groups["0.weight"], scoring)
    torch.testing.assert_close(found, normalised(2, 4, 1))


def test_apoz_by_hand() -> None:
    # 3 of 8 pixels are above zero, 4 below, and one is a zero, which no ReLU lets through
    scoring, groups = gather(APoZ(), factors(1.0, -2.0, 0.0), IMAGES)
    assert APoZ().score_units(groups["0.weight"], scoring).tolist() == [3 / 8, 4 / 8, 0]


def test_apoz_is_one_minus_the_zeros_behind_the_relu() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 1, 2))
    nn.init.normal_(net[1].bias)
    batches = [torch.randn(3, 2, 4, 4), torch.randn(5, 2, 4, 4)]
    scoring, groups = gather(APoZ(), net, batches)
    behind = torch.cat([net[:3](batch) for batch in batches])
    zeros = (behind == 0).float().mean((0, 2, 3))
    assert float(zeros.min()) < 0.1 < 0.5 < float(zeros.max()) < 1
    torch.testing.assert_close(APoZ().score_units(groups["0.weight"], scoring), 1 - zeros)


@pytest.mark.parametrize("how", ["sum", "mean", "max", "first"])
def test_several_makers_by_hand(how: str) -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.head = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False), nn.Linear(2, 1)
            with torch.no_grad():
                self.one.weight.copy_(torch.tensor([[1.0], [-2.0]]))
                self.other.weight.copy_(torch.tensor([[3.0], [4.0]]))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.one(x) + self.other(x))

    batch = torch.tensor([[1.0], [2.0], [-1.0], [4.0]])  # |x| has the mean 2, and 3 of 4 are above zero
    scoring, groups = gather(MeanActivation(), Stream(), [batch])
    means = {"sum": (4, 6), "mean": (4, 6), "max": (6, 8), "first": (2, 4)}[how]  # of (2, 4) and (6, 8)
    found = MeanActivation().score_units(groups["one.weight"], replace(scoring, aggregate=how))
    torch.testing.assert_close(found, normalised(*means))
    scoring, groups = gather(APoZ(), Stream(), [batch])
    shares = {"sum": (0.75, 0.5), "mean": (0.75, 0.5), "max": (0.75, 0.75), "first": (0.75, 0.25)}[how]
    found = APoZ().score_units(groups["one.weight"], replace(scoring, aggregate=how))
    assert tuple(found.tolist()) == shares


def test_a_unit_of_several_channels_has_their_mean() -> None:
    """Behind a flatten a unit owns four features of the norm."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 1)).eval()
    batch = torch.randn(6, 1, 2, 2)
    for criterion in (MeanActivation(), APoZ()):
        scoring, groups = gather(criterion, net, [batch])
        shown = net[:3](batch).detach().view(6, 2, 4)
        means = (shown.abs() if isinstance(criterion, MeanActivation) else (shown > 0).float()).mean((0, 2))
        expected = normalised(*means.tolist()) if isinstance(criterion, MeanActivation) else means
        torch.testing.assert_close(criterion.score_units(groups["0.weight"], scoring), expected, rtol=1e-4, atol=1e-6)


@BOTH
def test_channels_that_no_layer_shows_cannot_be_scored(criterion: Criterion) -> None:
    group = Group("w", (Member("w", 0, torch.arange(3).reshape(3, 1), False),), ())
    message = f"^no layer output contains these channels, so {type(criterion).__name__} cannot score them$"
    with pytest.raises(CannotScoreError, match=message):
        criterion.check(group, Scoring(nn.Identity(), {}))


@BOTH
def test_what_was_not_seen_is_named(criterion: Criterion) -> None:
    scoring, groups = gather(criterion, factors(1.0, 2.0), IMAGES)
    message = (
        rf"^{type(criterion).__name__} needs activations of '0', but none were gathered since the last event. Is it"
    )
    with pytest.raises(ValueError, match=message):
        criterion.score_units(groups["0.weight"], replace(scoring, statistics={}))


@BOTH
def test_every_n_steps_is_checked(criterion: Criterion) -> None:
    with pytest.raises(ValueError, match=r"every_n_steps=0 must be an integer of at least 1$"):
        replace(criterion, every_n_steps=0)  # type: ignore[type-var]
