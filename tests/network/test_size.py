import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.dense_reference import DenseReference
from lightning_prune.coupling import find_coupling
from lightning_prune.network.example_input import Example
from lightning_prune.network.pass_latency import compare_latency, latency
from lightning_prune.network.size import count_macs, measure
from lightning_prune.network.timing import Clock
from lightning_prune.surgery.apply import apply_plan
from lightning_prune.surgery.removal import plan_removal


class Products(nn.Module):
    """Matrix products of every kind between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed = (self.query(x) @ self.key(x).transpose(1, 2)).relu() @ self.value(x)
        scores: Tensor = self.out(mixed)
        return scores


class FixedKernel(nn.Module):
    """A convolution whose kernel is no parameter, and one whose kernel went through an operation without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, torch.ones(4, 3, 3, 3, device=x.device))
        x = F.conv2d(x, self.weight.cumprod(1))
        scores: Tensor = self.out(x.mean((2, 3)))
        return scores


def image(channels: int = 3, pixels: int = 8) -> Tensor:
    return torch.zeros(1, channels, pixels, pixels)


# (network, input, multiply-accumulates of one example)
HAND = {
    "conv": (nn.Conv2d(3, 8, 3), image(), 6 * 6 * 3 * 3 * 3 * 8),
    "padding": (nn.Conv2d(3, 8, 3, padding=1), image(), 8 * 8 * 3 * 3 * 3 * 8),
    "stride": (nn.Conv2d(3, 8, 3, padding=1, stride=2), image(), 4 * 4 * 3 * 3 * 3 * 8),
    "dilation": (nn.Conv2d(3, 8, 3, dilation=2), image(), 4 * 4 * 3 * 3 * 3 * 8),
    "kernel not square": (nn.Conv2d(3, 8, (1, 5)), image(), 8 * 4 * 5 * 3 * 8),
    "groups": (nn.Conv2d(4, 8, 3, padding=1, groups=2), image(4), 8 * 8 * 3 * 3 * 2 * 8),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), image(4), 8 * 8 * 3 * 3 * 4),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2), image(4), 8 * 8 * 2 * 2 * 4 * 6),
    "transposed with groups": (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), image(4), 8 * 8 * 2 * 2 * 4 * 3),
    "1-D": (nn.Conv1d(2, 5, 3), torch.zeros(1, 2, 10), 8 * 3 * 2 * 5),
    "3-D": (nn.Conv3d(1, 5, 2), torch.zeros(1, 1, 4, 4, 4), 27 * 8 * 5),
    "linear": (nn.Linear(10, 3), torch.zeros(1, 10), 30),
    "linear over tokens": (nn.Linear(10, 3), torch.zeros(1, 7, 10), 7 * 30),
    "products": (Products(), torch.zeros(1, 7, 6), 7 * 6 * (8 + 8 + 5) + 7 * 7 * 8 + 7 * 7 * 5 + 7 * 5 * 3),
    "elementwise work is free": (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)), image(), 0),
    "kernels that are no parameters": (FixedKernel(), image(), 6 * 6 * 9 * 3 * 4 + 4 * 4 * 9 * 4 * 4 + 4 * 2),
}


@pytest.mark.parametrize("name", HAND)
def test_macs_are_those_computed_by_hand(name: str) -> None:
    model, inputs, macs = HAND[name]
    assert count_macs(model, Example.of(inputs)) == macs


@pytest.mark.parametrize("name", HAND)
def test_the_analysis_predicts_the_macs_computed_by_hand(name: str) -> None:
    model, inputs, macs = HAND[name]
    assert DenseReference.of(find_coupling(model, Example.of(inputs))).macs == macs


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_does_not_count(batch: int) -> None:
    inputs = torch.zeros(batch, 3, 8, 8)
    assert count_macs(nn.Conv2d(3, 8, 3), Example.of(inputs)) == HAND["conv"][2]


@pytest.mark.parametrize("channels", [(1, 1), (3, 1), (5, 4), (8, 5)])
def test_predicted_costs_of_attention_follow_the_kept_widths(channels: tuple[int, int]) -> None:
    model, example = Products(), Example.of(torch.zeros(1, 7, 6))
    coupling = find_coupling(model, example)
    kept = dict(zip(("query.weight", "value.weight"), channels, strict=True))
    assert {name: group.size for name, group in coupling.groups.items()} == {"query.weight": 8, "value.weight": 5}
    scores = {name: torch.arange(group.size) for name, group in coupling.groups.items()}
    space = ChannelSpace(coupling, scores, DenseReference.of(coupling))
    apply_plan(model, plan_removal(space.lowest(kept), coupling))
    d, v = channels
    assert space.macs(kept) == count_macs(model, example) == 7 * 6 * (2 * d + v) + 49 * d + 49 * v + 7 * v * 3
    assert space.params(kept) == sum(p.numel() for p in model.parameters()) == 7 * (2 * d + v) + v * 3 + 3


def test_measure_counts_zeros_and_leaves_the_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train()
    nn.init.ones_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    size = measure(model, Example.of(torch.zeros(1, 4)))
    assert (size.params, size.nonzero, size.macs) == (15, 12, 12)
    assert model.training
    assert measure(model, None).macs is None


def test_tied_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    size = measure(model, Example.of(torch.zeros(1, 4)))
    assert (size.params, size.macs) == (16, 32)


def test_transformer_layers_are_counted_with_the_fast_path_off() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tokens, width, hidden = 5, 8, 16
    projections = 4 * tokens * width * width
    attention = 2 * tokens * tokens * width
    assert count_macs(layer, Example.of(torch.zeros(1, 5, 8))) == projections + attention + 2 * tokens * width * hidden
    assert torch.backends.mha.get_fastpath_enabled()


class Sleeper(nn.Module):
    """Notes the order of calls and the mode."""

    def __init__(self, name: str, calls: list[tuple[str, bool]]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.calls.append((self.name, self.training))
        return x * scale


@pytest.mark.parametrize("inputs", [torch.zeros(1), (torch.zeros(1), 2.0), {"x": torch.zeros(1), "scale": 2.0}])
def test_latency_is_measured_in_turns_in_eval_mode(inputs) -> None:
    calls: list[tuple[str, bool]] = []
    models = {"a": Sleeper("a", calls).train(), "b": Sleeper("b", calls).eval()}
    seconds = compare_latency(models, Example.of(inputs), repeats=3, warmup=1)
    assert calls == [("a", False), ("b", False)] * 4
    assert models["a"].training
    assert not models["b"].training
    assert seconds.keys() == {"a", "b"}
    assert all(value > 0 for value in seconds.values())


@pytest.mark.parametrize(
    "inputs",
    [torch.zeros(3), (torch.zeros(3), 2.0), {"x": torch.zeros(3), "scale": 2.0}],
    ids=["tensor", "tuple", "dict"],
)
def test_median_and_percentile_by_hand(inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes that take 1, 2, ... 105 ms, of which the first five are warm-up: 6 to 105."""
    calls: list[tuple[str, bool]] = []
    model = nn.Sequential(Sleeper("a", calls)) if isinstance(inputs, Tensor) else Sleeper("a", calls)
    monkeypatch.setattr(Clock, "mark", lambda self: len(calls) * (len(calls) + 1) / 2 / 1000)  # 1 + 2 + ... seconds
    model.train()
    timing = latency(model, inputs, repeats=100, warmup=5)
    assert timing.median_ms == pytest.approx(55.5)
    assert timing.p99_ms == pytest.approx(104.01)  # 99 % of the way from the lowest to the highest rank
    assert calls == [("a", False)] * 105
    assert all(module.training for module in model.modules())


def test_latency_runs_the_whole_batch_without_gradients() -> None:
    seen: list[tuple[int, bool]] = []

    class Seeing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((len(x), torch.is_inference_mode_enabled()))
            return super().forward(x)

    model = Seeing(4, 2)
    timing = latency(model, torch.zeros(7, 4), repeats=3, warmup=0)
    assert seen == [(7, True)] * 3
    assert 0 < timing.median_ms <= timing.p99_ms
    model(torch.zeros(7, 4)).sum().backward()


def test_modes_are_restored_where_a_pass_fails() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Dropout()).train()
    model[1].eval()
    with pytest.raises(RuntimeError):
        latency(model, torch.zeros(7, 5))
    assert [module.training for module in model.modules()] == [True, True, False]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"repeats": 0}, "latency repeats=0 must be an integer of at least 1"),
        ({"warmup": -1}, "latency warmup=-1 must be an integer of at least 0"),
    ],
    ids=["repeats", "warmup"],
)
def test_numbers_of_passes_out_of_range_raise(argument: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latency(nn.Linear(4, 2), torch.zeros(7, 4), **argument)
