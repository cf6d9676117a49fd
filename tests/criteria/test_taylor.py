import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.coupling import Group, Member, find_coupling
from lightning_prune.criteria import CannotScoreError, Scoring, Taylor
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import named_tensors


class Linearly(nn.Module):
    """A 1x1 convolution, the mean over space, and a sum: gradients are known by heart."""

    def __init__(self, made: list[float], read: list[float]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, len(made), 1, bias=False)
        self.fc = nn.Linear(len(made), 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor(made).reshape(-1, 1, 1, 1))
            self.fc.weight.copy_(torch.tensor([read]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


def taylor(net: nn.Module, batches: list[Tensor], name: str, scale: float = 1.0) -> Tensor:
    """Scores after one backward pass for each batch, with the sum of the outputs as the loss."""
    criterion = Taylor()
    coupling = find_coupling(net, Example.of(batches[0]))
    statistics = criterion.statistics()
    statistics.attach(net, coupling.groups.values())
    for step, batch in enumerate(batches):
        statistics.begin_step(step)
        (net(batch).sum() * scale).backward()
        statistics.commit()
    statistics.detach()
    scoring = Scoring(net, dict(named_tensors(net)), statistics.totals)
    return criterion.score_units(coupling.groups[name], scoring)


def normalised(values: list[float]) -> Tensor:
    vector = torch.tensor(values)
    return vector / vector.norm()


IMAGE = torch.tensor([[[[1.0, 3.0], [-1.0, 5.0]]]])  # one example, mean 2


def test_mean_over_space_of_activation_times_gradient() -> None:
    # activation c: made_c * x, its gradient: read_c / 4 everywhere; |mean| = |made_c * 2 * read_c / 4|
    found = taylor(Linearly([1.0, -2.0, 3.0], [4.0, 1.0, 0.0]), [IMAGE], "conv.weight")
    torch.testing.assert_close(found, normalised([2.0, 1.0, 0.0]))


def test_signs_do_not_cancel_between_examples() -> None:
    # the mean over this batch is 0 for every channel: the absolute value has to come before it
    batch = torch.cat([IMAGE, -IMAGE])
    found = taylor(Linearly([1.0, -2.0, 3.0], [4.0, 1.0, 2.0]), [batch], "conv.weight")
    torch.testing.assert_close(found, normalised([4.0, 2.0, 6.0]))


def test_signs_do_cancel_within_an_example() -> None:
    # each channel sees a mean of 0 over space, except the first example's
    flat = torch.tensor([[[[1.0, -1.0], [2.0, -2.0]]]])
    net = Linearly([1.0, 2.0], [1.0, 1.0])
    torch.testing.assert_close(taylor(net, [flat], "conv.weight"), torch.zeros(2))
    torch.testing.assert_close(taylor(net, [torch.cat([flat, IMAGE])], "conv.weight"), normalised([1.0, 2.0]))


def test_batches_and_their_order_do_not_matter() -> None:
    torch.manual_seed(0)
    net = Linearly([1.0, -2.0, 0.5], [4.0, 1.0, 2.0])
    data = torch.randn(12, 1, 2, 2)
    whole = taylor(net, [data], "conv.weight")
    torch.testing.assert_close(taylor(net, list(data.split(4)), "conv.weight"), whole)
    torch.testing.assert_close(taylor(net, list(data.flip(0).split(1)), "conv.weight"), whole)


@pytest.mark.parametrize("scale", [1e-4, 128.0, -3.0])
def test_the_scale_of_the_loss_does_not_matter(scale: float) -> None:
    net = Linearly([1.0, -2.0, 0.5], [4.0, 1.0, 2.0])
    torch.testing.assert_close(
        taylor(net, [IMAGE], "conv.weight", scale), taylor(net, [IMAGE], "conv.weight"), rtol=1e-5, atol=0
    )


def test_every_group_has_a_norm_of_one() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 300), nn.ReLU(), nn.Linear(300, 2))
    batch = torch.randn(8, 4)
    for name in ("0.weight", "2.weight"):
        assert taylor(net, [batch], name).norm().item() == pytest.approx(1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 5, 3, padding=1)
        self.inner = nn.Conv2d(5, 4, 3, padding=1)
        self.outer = nn.Conv2d(4, 5, 3, padding=1)
        self.bn = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor, kept: dict[str, Tensor] | None = None) -> Tensor:
        stem = self.stem(x)
        added = self.bn(self.outer(self.inner(stem).relu()))
        if kept is not None:
            kept |= {"stem": stem, "bn": added}
        return self.head((stem + added).relu().mean((2, 3)))


def test_two_layers_on_a_residual_stream_are_added() -> None:
    torch.manual_seed(0)
    net, batch = Residual(), torch.randn(6, 2, 4, 4)
    group = find_coupling(net, Example.of(batch)).groups["stem.weight"]
    assert sorted(activation.module for activation in group.activations) == ["bn", "stem"]

    kept: dict[str, Tensor] = {}
    loss = net(batch, kept).sum()
    expected = torch.zeros(5, dtype=torch.float64)
    for activation in kept.values():
        (gradient,) = torch.autograd.grad(loss, activation, retain_graph=True)
        product = activation.detach().double() * gradient.double()
        for example in product:
            expected += example.mean((1, 2)).abs()
    found = taylor(net, [batch], "stem.weight")
    torch.testing.assert_close(found, (expected / expected.norm()).float(), rtol=1e-4, atol=1e-6)


def test_a_dead_channel_scores_zero_and_so_does_a_dead_group() -> None:
    assert taylor(Linearly([1.0, 2.0], [0.0, 1.0]), [IMAGE], "conv.weight").tolist() == [0, 1]
    assert taylor(Linearly([1.0, 2.0], [0.0, 0.0]), [IMAGE], "conv.weight").tolist() == [0, 0]


def test_missing_gradients_are_named() -> None:
    net = Linearly([1.0, 2.0], [1.0, 1.0])
    group = find_coupling(net, Example.of(IMAGE)).groups["conv.weight"]
    with pytest.raises(
        ValueError,
        match="^" + re.escape("Taylor needs gradients of 'conv', but none were gathered since the last event. Is it "),
    ):
        Taylor().score_units(group, Scoring(net, dict(named_tensors(net))))


def test_channels_that_no_layer_shows_cannot_be_scored() -> None:
    group = Group("w", (Member("w", 0, torch.arange(3).reshape(3, 1), False),), ())
    with pytest.raises(CannotScoreError) as error:
        Taylor().check(group, Scoring(nn.Identity(), {}))
    assert str(error.value) == (
        "no layer output contains these channels, so Taylor cannot score them; WeightTaylor() can"
    )


def test_every_n_steps_is_passed_on() -> None:
    assert Taylor(every_n_steps=4).statistics().every_n_steps == 4


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "2"], ids=repr)
def test_every_n_steps_is_a_whole_number(value: object) -> None:
    message = f"Taylor every_n_steps={value!r} must be an integer of at least 1"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        Taylor(every_n_steps=value)


@pytest.mark.parametrize(
    ("how", "expected"), [("sum", [5, 4, 3]), ("mean", [5, 4, 3]), ("max", [4, 2, 3]), ("first", [1, 2, 3])]
)
def test_several_activations_by_hand(how: str, expected: list[int]) -> None:
    group = find_coupling(Residual(), Example.of(torch.zeros(2, 2, 4, 4))).groups["stem.weight"]
    first, second = (activation.module for activation in group.activations)
    index = torch.arange(3).reshape(3, 1)  # the first three channels are enough
    group = replace(group, activations=tuple(replace(a, index=index) for a in group.activations))
    sums = {first: torch.tensor([1.0, 2.0, 3.0]), second: torch.tensor([4.0, 2.0, 0.0])}
    found = Taylor().score_units(group, Scoring(nn.Identity(), {}, sums, aggregate=how))
    torch.testing.assert_close(found, normalised([float(value) for value in expected]))
