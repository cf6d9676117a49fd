"""Tables of latencies, and the passes that they are measured in."""

import math

import pytest
import torch
from helpers.fake_time import fake_time, total
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_prune.budgets import latency_measurement
from lightning_prune.budgets.latency_measurement import Copies, Stopwatch, measure_table
from lightning_prune.budgets.spaces.latency_table import Conditions, Curve
from lightning_prune.coupling import find_coupling
from lightning_prune.network import timing
from lightning_prune.network.example_input import Example
from lightning_prune.network.timing import time_network, time_ratio, timed_layers


def chain(a: int = 40, b: int = 20) -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, a, False), nn.ReLU(), nn.Linear(a, b, False), nn.ReLU(), nn.Linear(b, 4, False))


EXAMPLE = Example.of(torch.zeros(2, 10))


# ---- curves


@given(st.lists(st.tuples(st.integers(1, 6), st.floats(0, 10)), min_size=1, max_size=12))
@settings(deadline=None)
def test_curves_are_isotonic_regressions(points: list[tuple[int, float]]) -> None:
    isotonic = pytest.importorskip("sklearn.isotonic")
    sizes, ms = zip(*points, strict=True)
    reference = isotonic.IsotonicRegression(out_of_bounds="clip").fit(sizes, ms)
    curve = Curve.through(["w"], points)
    for size in (0, 1, 1.5, 2.75, 4, 6, 9):
        assert curve.at({"w": size}) == pytest.approx(float(reference.predict([size])[0]), abs=1e-5)  # of float32


def test_only_its_own_parameters_count() -> None:
    curve = Curve.through(["a", "b"], [(10, 1.0), (30, 5.0)])
    assert curve.at({"a": 12, "b": 8, "c": 100}) == 3.0


def test_parameters_that_are_gone_count_nothing() -> None:
    curve = Curve.through(["a", "b"], [(10, 1.0), (30, 5.0)])
    assert curve.at({"b": 20}) == 3.0
    assert curve.at({"b": 5}) == 1.0  # as the fewest that were measured
    assert curve.at({"c": 100}) == 0.0


# ---- tables


def test_a_table_foresees_what_goes_by_weights(monkeypatch) -> None:
    """(10 a + ab + 4 b) / 1000 for two examples, which are twice one, at any widths between those measured."""
    net = chain()
    coupling = find_coupling(net, EXAMPLE)
    with fake_time(monkeypatch):
        table = measure_table((chain(a, b), EXAMPLE) for a, b in [(40, 20), (20, 10), (10, 5), (1, 1)])
    for a, b in [(40, 20), (33, 20), (7, 19), (1, 1), (40, 1)]:
        foreseen = table.ms(coupling, {"0.weight": 40 - a, "2.weight": 20 - b})
        assert foreseen == pytest.approx(2 * (10 * a + a * b + 4 * b) / 1000)
    assert table.dense_ms == pytest.approx(2 * total(net))


def test_layers_that_seem_to_take_more_than_all_are_scaled(monkeypatch) -> None:
    """Hooks take time, too."""
    monkeypatch.setattr(latency_measurement, "time_network", lambda *_: (6.0, {"0": 4.0, "2": 6.0, "4": 2.0}))
    table = measure_table([(chain(), EXAMPLE)])
    assert [curve.ms for curve in table.curves] == [(2.0,), (3.0,), (1.0,), (0.0,)]


def test_what_is_in_no_layer_is_the_rest(monkeypatch) -> None:
    monkeypatch.setattr(latency_measurement, "time_network", lambda *_: (20.0, {"0": 4.0, "2": 6.0, "4": 2.0}))
    table = measure_table([(chain(), EXAMPLE)])
    assert [curve.ms for curve in table.curves] == [(4.0,), (6.0,), (2.0,), (8.0,)]
    assert table.curves[-1].sizes == (10 * 40 + 40 * 20 + 20 * 4,)


def test_the_state_is_the_table_and_what_was_measured(monkeypatch) -> None:
    net, conditions = chain(), Conditions(2)
    copies, half = Copies(net, EXAMPLE, find_coupling(net, EXAMPLE)), {"0.weight": torch.arange(40) < 20}
    stopwatch, other = Stopwatch(), Stopwatch()
    with fake_time(monkeypatch) as clock:
        stopwatch.add(conditions, copies, [{}, half])
        stopwatch.measured(conditions, copies, half)
        clock.slowness = 5
        other.load_state_dict(stopwatch.state_dict())
        assert other.state_dict() == stopwatch.state_dict()
        assert other.measured(conditions, copies, half) == pytest.approx(2 * total(chain(20, 20)))
    assert other.tables == stopwatch.tables
    assert [len(p) for p in net.parameters()] == [40, 20, 4]


def test_what_was_measured_is_what_the_next_ratio_refers_to(monkeypatch) -> None:
    """The table, through one point, knows nothing of the widths between."""
    net, conditions = chain(), Conditions(2)
    half = {"0.weight": torch.arange(40) < 20}
    with fake_time(monkeypatch) as clock:
        stopwatch = Stopwatch()
        stopwatch.add(conditions, Copies(net, EXAMPLE, find_coupling(net, EXAMPLE)), [{}])
        stopwatch.measured(conditions, Copies(net, EXAMPLE, find_coupling(net, EXAMPLE)), half)
        clock.slowness = 7
        smaller = chain(20, 20)
        copies = Copies(smaller, EXAMPLE, find_coupling(smaller, EXAMPLE))
        quarter = stopwatch.measured(conditions, copies, {"2.weight": torch.arange(20) < 10})
    assert quarter == pytest.approx(2 * total(chain(20, 10)))


# ---- passes


class Ticking(nn.Module):
    """Moves the clock without being a layer with parameters."""

    def __init__(self, clock: object, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.seconds
        return x


def test_a_layer_lasts_until_the_next_begins(monkeypatch) -> None:
    with fake_time(monkeypatch) as clock:
        shared = nn.Linear(10, 10)
        net = nn.Sequential(
            Ticking(clock, 0.5),
            shared,
            Ticking(clock, 0.25),
            nn.Linear(10, 20),
            shared_after := nn.Linear(20, 10),
            shared,
        )
        ms, by_layer = time_network(net, Example.of(torch.zeros(1, 10)), list(timed_layers(net)))
    assert len(shared_after.weight) == 10
    assert ms == pytest.approx(750 + 2 * (0.1 + 0.2 + 0.2 + 0.1))
    assert by_layer == pytest.approx({"1": 250 + 2 * (0.1 + 0.1), "3": 2 * 0.2, "4": 2 * 0.2})
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_ratios_are_medians_of_passes_in_turns(monkeypatch) -> None:
    """A machine that slows down from pass to pass has no part in them."""

    class Tiring(Ticking):
        def forward(self, x: Tensor) -> Tensor:
            self.clock.slowness *= 1.5
            return x

    with fake_time(monkeypatch) as clock:
        wide, narrow = nn.Sequential(nn.Linear(10, 30), Tiring(clock, 0)), nn.Sequential(nn.Linear(10, 15))
        ratio = time_ratio(narrow, wide, Example.of(torch.zeros(1, 10)))
        assert clock.slowness == pytest.approx(1.5 ** (timing._WARMUP + timing._FEWEST))
    assert ratio == pytest.approx(0.5)


@pytest.mark.parametrize(("slow", "turns"), [(1.0, 11), (1.5, 51)])
def test_ratios_take_longer_on_a_busy_machine(monkeypatch, slow: float, turns: int) -> None:
    """Turns of 0.1 s end after a second; where every other pass is slow, after five."""
    seconds, passes = 0.0, 0

    def mark(clock: timing.Clock) -> float:
        nonlocal seconds, passes
        passes += 1
        seconds += 0.025 * (slow if passes % 8 == 2 else 1)
        return seconds

    monkeypatch.setattr(timing.Clock, "mark", mark)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: seconds)
    net = chain().eval()
    assert time_ratio(net, net, EXAMPLE) == pytest.approx(1.0 if slow == 1 else 1.25, abs=0.26)
    assert passes // 4 - timing._WARMUP == pytest.approx(turns, abs=max(1, turns // 6))


def test_passes_are_in_inference_mode_and_leave_the_random_state() -> None:
    seen: list[tuple[bool, bool]] = []

    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((torch.is_inference_mode_enabled(), self.training))
            return x + torch.rand(1)

    before = torch.get_rng_state()
    time_network(Random().eval(), Example.of(torch.zeros(1, 10)), [])
    assert set(seen) == {(True, False)}
    assert torch.equal(before, torch.get_rng_state())


class Own(nn.Module):
    """A module of the user's with a parameter beside layers, one without layers, and one that holds only these."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4))
        self.first, self.second = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.ModuleList([nn.LSTM(4, 4)])
        self.attention = nn.TransformerEncoderLayer(4, 2, 8)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first[0].weight
        self.scale = Scale()
        self.frozen = nn.Identity()


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor, self.inner = nn.Parameter(torch.ones(4)), nn.Dropout()


def test_layers_are_what_computes_with_parameters_of_its_own() -> None:
    found = timed_layers(Own())
    assert list(found) == ["first.0", "second.0", "attention", "tied", "scale"]
    assert found["first.0"] == ["first.0.bias", "first.0.weight"]
    assert found["tied"] == ["first.0.weight", "tied.bias"]
    assert found["scale"] == ["scale.factor"]
    assert len(found["attention"]) == 12
    assert timed_layers(nn.Linear(2, 2)) == {"": ["bias", "weight"]}
    assert timed_layers(nn.ReLU()) == {}


def test_copies_have_the_batch_that_is_asked_for() -> None:
    net = chain()
    copies = Copies(net, EXAMPLE, find_coupling(net, EXAMPLE))
    for batch in (1, 2, 5):
        network, inputs = copies.cut({"2.weight": torch.arange(20) < 15}, Conditions(batch, "cpu"))
        assert inputs.args[0].shape == (batch, 10)
        assert [len(p) for p in network.parameters()] == [40, 5, 4]
        assert not network.training
    assert net.training
    assert math.prod(net[2].weight.shape) == 800


def test_the_clock_of_the_machine_goes_forward() -> None:
    net = chain().eval()
    ms, by_layer = time_network(net, EXAMPLE, list(timed_layers(net)))
    assert min(ms, *by_layer.values(), time_ratio(net, net, EXAMPLE)) > 0
