"""The network shrinks until a pass is fast enough, by a clock that layers move by what they cost."""

import math
import re
from collections.abc import Iterator

import pytest
import torch
from helpers.fake_time import Cost, FakeTime, by_inputs, by_weights, fake_time, total
from helpers.residual import LitResidual
from helpers.training import Events, Lit, fit, same, trainer_for, widths
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_prune import Blocks, Channels, IterativePruning, Scope, Weights, prune_once
from lightning_prune.budgets import All, BudgetError, Count, Latency, MACs, Params, Ratio, latency_measurement
from lightning_prune.criteria import Magnitude, Random
from lightning_prune.network.example_input import Example
from lightning_prune.pruners.channel_pruner import ChannelPruner
from lightning_prune.schedules import Rounds

INPUT = torch.zeros(1, 40)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTime]:
    with fake_time(monkeypatch) as fake:
        yield fake


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[latency_measurement.LatencyTable]:
    """Every table that is measured."""
    found: list[latency_measurement.LatencyTable] = []
    measure = latency_measurement.measure_table

    def measure_table(*args) -> latency_measurement.LatencyTable:
        found.append(measure(*args))
        return found[-1]

    monkeypatch.setattr(latency_measurement, "measure_table", measure_table)
    return found


def mlp(bias: bool = False) -> nn.Sequential:
    """Layers of different scales, so that ranking takes more of some; 71 ms by weights, 68.35 by inputs."""
    layers = [nn.Linear(40, 200, bias), nn.ReLU(), nn.Linear(200, 300, bias), nn.ReLU(), nn.Linear(300, 10, bias)]
    with torch.no_grad():
        layers[2].weight.mul_(0.5)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("granularity", [Channels(), Channels(round_to=8)], ids=repr)
@pytest.mark.parametrize("keep", [0.8, 0.5, 0.2])
def test_where_the_table_is_right_it_is_met_as_parameters_are(
    granularity: Channels, per_layer: bool, keep: float, clock
) -> None:
    """Without biases, milliseconds are thousandths of the parameters; within 5 % nothing is corrected."""
    net, other = mlp(), mlp()
    other.load_state_dict(net.state_dict())
    prune_once(net, INPUT, granularity=granularity, budget=Latency(keep=keep, per_layer=per_layer))
    prune_once(other, INPUT, granularity=granularity, budget=Params(keep, per_layer=per_layer))
    assert widths(net) == widths(other)
    assert total(net) <= keep * 71 * (1 + 1e-9)


@pytest.mark.parametrize("round_to", [1, 4])
@pytest.mark.parametrize("ms", [50, 30, 12, 4])
def test_where_the_table_is_wrong_measuring_corrects_it(ms: float, round_to: int, monkeypatch) -> None:
    net = mlp()
    with fake_time(monkeypatch, by_inputs):
        prune_once(net, INPUT, granularity=Channels(round_to=round_to), budget=Latency(ms))
    assert ms * 0.95 - 0.35 * round_to <= total(net, by_inputs) <= ms * (1 + 1e-9)


def test_the_table_is_wrong_there(monkeypatch) -> None:
    """Otherwise the test above would show nothing."""
    with fake_time(monkeypatch, by_inputs):
        pruner = ChannelPruner(Channels(), Magnitude(), Latency(keep=0.5), Scope())
        net = mlp()
        example = Example.of(INPUT)
        pruner.prepare(net, example)
        table = pruner.search.stopwatch.tables[latency_measurement.Conditions()]
        coupling = pruner.coupling(net, example, dict(net.named_parameters()))
    for gone in ({}, {"0.weight": 100, "2.weight": 150}):
        cut = nn.Sequential(*(nn.Linear(*shape) for shape in edges(gone)))
        assert table.ms(coupling, gone) == pytest.approx(total(cut, by_inputs), rel=0.02)
    gone = {"2.weight": 270}
    cut = nn.Sequential(*(nn.Linear(*shape) for shape in edges(gone)))
    assert table.ms(coupling, gone) != pytest.approx(total(cut, by_inputs), rel=0.1)


def edges(gone: dict[str, int]) -> list[tuple[int, int]]:
    a, b = 200 - gone.get("0.weight", 0), 300 - gone.get("2.weight", 0)
    return [(40, a), (a, b), (b, 10)]


def test_the_batch_counts(clock) -> None:
    nets = mlp(), mlp()
    nets[1].load_state_dict(nets[0].state_dict())
    for net, batch in zip(nets, (1, 8), strict=True):
        prune_once(net, INPUT, budget=Latency(30.0 * batch, batch=batch))
    assert widths(nets[0]) == widths(nets[1])


def test_on_the_way_it_is_interpolated_from_the_dense_network(tmp_path, clock, tables) -> None:
    """Four events, one table."""
    taken: list[float] = []

    class Watch(Events):
        def on_prune(self, trainer, pl_module, plan, report) -> None:
            taken.append(total(pl_module))

    module = Lit(width=96)
    dense = total(module)
    pruning = IterativePruning(Rounds(start=1, every=1, count=4), Latency(10))
    fit(tmp_path, module, pruning, Watch(), max_epochs=6)
    wanted = [dense - (dense - 10) * n / 4 for n in range(1, 5)]
    assert all(0.95 * due <= ms <= due for ms, due in zip(taken, wanted, strict=True))
    assert len(tables) == 1
    assert tables[0].dense_ms == pytest.approx(dense)


def test_a_machine_that_is_busy_later_changes_nothing(tmp_path, clock) -> None:
    class Busy(Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            clock.slowness *= 3

    quiet, busy = Lit(width=32), Lit(width=32)
    busy.load_state_dict(quiet.state_dict())
    for module, others in ((quiet, []), (busy, [Busy()])):
        pruning = IterativePruning(Rounds(start=1, every=1, count=3), Latency(keep=0.4))
        fit(tmp_path, module, pruning, *others, max_epochs=5)
    assert widths(quiet) == widths(busy) != [32, 32, 3]
    assert clock.slowness == 3**5


def test_a_resumed_training_keeps_the_table(tmp_path, clock, tables) -> None:
    def pruning() -> IterativePruning:
        return IterativePruning(Rounds(start=1, every=1, count=3), Latency(keep=0.3))

    whole, resumed = Lit(width=32), Lit(width=32)
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    resumed.load_state_dict(whole.state_dict())
    fit(tmp_path, whole, pruning(), save, max_epochs=5)
    trainer = trainer_for(tmp_path, pruning(), max_epochs=5)
    trainer.fit(resumed, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert len(tables) == 1
    assert same(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert total(whole) <= 0.3 * total(Lit(width=32))


@pytest.mark.parametrize(
    "parts", [[MACs(0.5), Latency(keep=0.3)], [Latency(keep=0.7), MACs(0.4)], [Latency(keep=0.9), Latency(20, batch=2)]]
)
def test_of_several_budgets_the_stricter_decides(parts: list, clock) -> None:
    net = mlp()
    prune_once(net, INPUT, budget=All(parts))
    strictest = min(10 / 71 if part.batch == 2 else part.keep for part in parts if isinstance(part, Latency))
    strictest = min([strictest, *(part.keep for part in parts if isinstance(part, MACs))])
    assert 0.95 * strictest - 0.01 <= total(net) / 71 <= strictest * (1 + 1e-9)


class Unlucky(nn.Module):
    """Runs at all widths that are tried before there are scores, and not at those that the event wants."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, 200, False), nn.Linear(40, 200, False)
        self.head, self.other = nn.Linear(200, 4, False), nn.Linear(200, 4, False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(x)
        if 120 < y.shape[-1] < 140:  # a table has 140 and 120
            raise RuntimeError("it is too late for that")
        return self.head(self.first(x)) + self.other(y)


def test_groups_that_cannot_be_timed_at_some_widths_stay(clock) -> None:
    """Of 17.6 ms 68 % are 12: 128 units go. Without scores the first are taken, by magnitude some of each."""
    net = Unlucky()
    report = prune_once(net, INPUT, budget=Latency(keep=0.68))
    assert "it is too late for that" in report.frozen["second.weight"]
    assert net.second.out_features == 200
    assert 0.6 <= total(net) / 17.6 <= 0.68


@pytest.mark.parametrize("budget", [Latency(0.05), Latency(keep=0.0005)], ids=repr)
def test_what_cannot_be_met_says_what_can(budget: Latency, clock) -> None:
    net = mlp()
    message = (
        f"{budget} cannot be met: with the fewest channels in every group a pass takes 0.051 ms, the dense "
        "network 71 ms. Widen the scope or increase the target."
    )  # 40 + 1 + 10 weights
    with pytest.raises(BudgetError, match=f"^{re.escape(message)}$"):
        prune_once(net, INPUT, budget=budget)
    assert widths(net) == [200, 300, 10]
    with pytest.raises(BudgetError, match=r"a pass takes 5.936 ms.* Widen the scope, lower round_to or increase"):
        prune_once(net, INPUT, granularity=Channels(round_to=56), budget=budget)  # 56 · (40 + 56 + 10) weights
    assert prune_once(mlp(), INPUT, budget=Latency(0.06)).after.params <= 60


def test_the_floor_is_measured_before_it_is_given_up(monkeypatch) -> None:
    """The table is right about the narrowest network, and what it foresees between is too fast."""
    with fake_time(monkeypatch, by_inputs):
        net = mlp()
        least = total(nn.Sequential(nn.Linear(40, 1), nn.Linear(1, 1), nn.Linear(1, 10)), by_inputs)
        prune_once(net, INPUT, budget=Latency(least * 1.01))
    assert total(net, by_inputs) <= least * 1.01


def test_what_is_met_already_is_said(clock) -> None:
    with pytest.raises(BudgetError, match=r"is met already: a pass of the dense network takes 71 ms$"):
        prune_once(mlp(), INPUT, budget=Latency(80))


def test_it_is_said_before_an_epoch_is_spent(tmp_path, clock) -> None:
    module = Lit()
    with pytest.raises(MisconfigurationException, match="cannot be met: with the fewest"):
        fit(tmp_path, module, IterativePruning(Rounds(start=2, every=1, count=2), Latency(1e-4)), max_epochs=5)
    assert module.losses == []


def test_weights_have_no_latency() -> None:
    with pytest.raises(ValueError, match=r"with Weights\(\) use Sparsity or Count$"):
        prune_once(mlp(), INPUT, granularity=Weights(), budget=Latency(5))


def test_an_input_without_a_batch_has_one_example(clock) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with pytest.raises(ValueError, match=r"^Latency batch=4: the example input has no batch dimension; use batch=1$"):
        prune_once(net, {"input": torch.zeros(3, 4, 4)}, budget=Latency(keep=0.5, batch=4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_a_device_that_is_not_there_is_named(clock) -> None:
    with pytest.raises(ValueError, match=r"^Latency device='cuda:0' cannot be used: "):
        prune_once(mlp(), INPUT, budget=Latency(keep=0.5, device="cuda:0"))


def test_other_budgets_measure_nothing(clock, tables) -> None:
    report = prune_once(mlp(), INPUT, budget=All([MACs(0.5), Ratio(0.1)]))
    assert report.removes
    assert not tables


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({}, "Latency ms=None, keep=None: give exactly one of them, such as ms=5 or keep=0.5"),
        ({"ms": 5, "keep": 0.5}, "Latency ms=5, keep=0.5: give exactly one of them, such as ms=5 or keep=0.5"),
        *(
            ({"ms": value}, f"Latency ms={value!r} must be a finite number above 0, in milliseconds, such as 5")
            for value in (0, -3, True, "5", math.nan, math.inf)
        ),
        ({"keep": 50}, "Latency keep=50 must be a number in [0, 1], such as 0.5 for one half"),
        *(
            ({"ms": 5, "batch": value}, f"Latency batch={value!r} must be an integer of at least 1")
            for value in (0, True, 1.5, None)
        ),
        ({"ms": 5, "device": "gpu"}, "Latency device='gpu' is not a device; use one such as 'cpu' or 'cuda:0'"),
        ({"ms": 5, "per_layer": 1}, "Latency per_layer=1 must be True or False"),
    ],
    ids=str,
)
def test_arguments_are_checked(init: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Latency(**init)


def test_the_real_clock_leaves_the_network_alone() -> None:
    """Only that it runs, and that something goes: how much depends on the machine."""
    net = nn.Sequential(nn.Linear(64, 1024), nn.Dropout(), nn.Linear(1024, 64)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    report = prune_once(net, torch.zeros(4, 64), budget=Latency(keep=0.6, batch=64), dry_run=True)
    assert same(before, dict(net.state_dict()))
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training and not module._forward_pre_hooks for module in net.modules())
    assert report.after.params < report.before.params


COSTS: dict[str, Cost] = {"weights": by_weights, "inputs": by_inputs}


@pytest.mark.parametrize("cost", COSTS)
def test_what_was_measured_last_is_where_the_next_event_starts(cost: str, monkeypatch, tmp_path) -> None:
    """Ratios to networks that were measured before: no error of the table is left in them."""
    with fake_time(monkeypatch, COSTS[cost]) as clock:

        class Slower(Callback):
            def on_train_epoch_end(self, trainer, pl_module) -> None:
                clock.slowness *= 2

        module = Lit(width=64)
        dense = total(module, COSTS[cost])
        pruning = IterativePruning(Rounds(start=1, every=1, count=4), Latency(keep=0.3))
        fit(tmp_path, module, pruning, Slower(), max_epochs=6)
        assert 0.9 * 0.3 <= total(module, COSTS[cost]) / dense <= 0.3 * (1 + 1e-9)


@pytest.mark.parametrize("blocks_first", [True, False])
def test_blocks_may_go_beside(blocks_first: bool, tmp_path, clock) -> None:
    """What a block took is not counted any longer: from 0.4 blocks fewer channels have to go."""
    lit = LitResidual()
    dense = total(lit)
    blocks = IterativePruning(Rounds(1, 1, 2), Count(1), Random(), Blocks())
    channels = IterativePruning(Rounds(2, 1, 2), Latency(keep=0.4), granularity=Channels())
    fit(tmp_path, lit, *([blocks, channels] if blocks_first else [channels, blocks]), max_epochs=4)
    assert len(blocks.pruner.removed) == 2
    assert 0.3 * dense < total(lit) <= 0.4 * dense
