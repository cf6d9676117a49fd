"""`IterativePruning` with `Channels`: effects and times of events."""

import math
import warnings

import pytest
import torch
from helpers.training import STEPS, Adversaries, Events, Lit, Stream, fit, images, widths
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_prune import Channels, IterativePruning, Plan, Report, Scope, SlimmingPenalty
from lightning_prune.budgets import Count, Params, Ratio
from lightning_prune.criteria import BatchNormScale, Magnitude, Random, Taylor
from lightning_prune.schedules import Constant, Cubic, Linear, Rounds, Schedule

HALF = Ratio(0.5)
FAKES_STAY = Scope(exclude=["generator.2"])  # real images have as many features


class BeforeAndAfter(Callback):
    """Compares each tensor after an event with the kept part of the one before it, bit for bit."""

    def __init__(self) -> None:
        self.events = 0
        self.sliced_states = 0

    def on_before_prune(self, trainer: Trainer, pl_module: LightningModule, pruning: IterativePruning) -> None:
        self.names = [name for name, _ in pl_module.named_parameters()]
        self.identities = [id(p) for p in pl_module.parameters()]
        self.tensors = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.states = _states(trainer, pl_module)

    def on_prune(self, trainer: Trainer, pl_module: LightningModule, plan: Plan, report: Report) -> None:
        self.events += 1
        assert [name for name, _ in pl_module.named_parameters()] == self.names
        assert [id(p) for p in pl_module.parameters()] == self.identities
        for name, value in pl_module.state_dict().items():
            assert torch.equal(value, _kept(self.tensors[name], plan, name)), name
        (optimizer,) = trainer.optimizers
        assert [id(p) for group in optimizer.param_groups for p in group["params"]] == self.identities
        assert {id(p) for p in optimizer.state} == (set(self.identities) if self.states else set())
        for (name, key), value in _states(trainer, pl_module).items():
            before = self.states[name, key]
            assert torch.equal(value, _kept(before, plan, name) if before.dim() else before), (name, key)
            self.sliced_states += value.shape != before.shape


def _states(trainer: Trainer, module: nn.Module) -> dict[tuple[str, str], Tensor]:
    names = {p: name for name, p in module.named_parameters()}
    states = trainer.optimizers[0].state.items()
    return {(names[p], key): v.clone() for p, state in states for key, v in state.items() if isinstance(v, Tensor)}


def _kept(tensor: Tensor, plan: Plan, name: str) -> Tensor:
    for dim, index in plan.keep.get(name, {}).items():
        tensor = tensor.index_select(dim, index)
    return tensor


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("criterion", ["taylor", "magnitude", BatchNormScale(), Random(seed=3)], ids=str)
def test_units_are_really_removed(tmp_path, optimizer, criterion) -> None:
    lit, events, check = Lit(optimizer=optimizer), Events(), BeforeAndAfter()
    pruning = IterativePruning(Rounds(1, 1, 2), HALF, criterion)
    trainer = fit(tmp_path, lit, pruning, events, check, max_epochs=4)
    assert check.events == len(events.times) == 2
    assert check.sliced_states > 0
    first, norm, _, second, other_norm, *_, last = lit.net
    assert widths(lit.net) == [4, 4, 3]
    assert (first.out_channels, second.in_channels, second.out_channels, last.in_features) == (4, 4, 4, 4)
    assert first.bias.shape == norm.weight.shape == norm.bias.shape == norm.running_mean.shape == (4,)
    assert norm.num_features == other_norm.num_features == len(other_norm.running_var) == 4
    assert [report.after.params for report in events.reports][-1] == sum(p.numel() for p in lit.parameters())
    assert pruning.sparsity == pytest.approx(1 - sum(p.numel() for p in lit.parameters()) / dense_params())
    assert all(map(math.isfinite, lit.losses))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.9**4 * (0.05 if optimizer == "sgd" else 5e-3))


def dense_params() -> int:
    return sum(p.numel() for p in Lit().parameters())


def test_training_continues_after_an_event(tmp_path) -> None:
    lit, after = Lit(), {}

    class Snapshot(Callback):
        def on_prune(self, trainer: Trainer, pl_module: LightningModule, plan: Plan, report: Report) -> None:
            after.update({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    fit(tmp_path, lit, IterativePruning(Constant(2), HALF), Snapshot(), max_epochs=20)
    for name, parameter in lit.named_parameters():
        assert not torch.equal(parameter, after[name]), f"{name} did not train"
    assert sum(lit.losses[-STEPS:]) < sum(lit.losses[2 * STEPS : 3 * STEPS])


@pytest.mark.parametrize(
    ("schedule", "options", "expected"),
    [
        (Rounds(1, 1, 2), {"max_epochs": 4}, [(1, 4), (2, 8)]),
        (Constant(0), {"max_epochs": 1}, [(0, 0)]),
        (Linear(1, 4, every=2), {"max_epochs": 6}, [(3, 12), (4, 16)]),
        (Rounds(3, 5, 2, unit="step"), {"max_epochs": 3}, [(0, 3), (2, 8)]),
        (Rounds(2, 1, 2, unit="step"), {"max_epochs": 1}, [(0, 2), (0, 3)]),
        (Rounds(0.25, 0.25, 3, unit="share"), {"max_epochs": 4}, [(1, 4), (2, 8), (3, 12)]),
        (Constant(0.375, unit="share"), {"max_epochs": 4}, [(1, 6)]),
        (Constant(0.5, unit="share"), {"max_epochs": 1}, [(0, 2)]),
        (Cubic(0, 0.75, every=0.25, unit="share"), {"max_epochs": 1}, [(0, 1), (0, 2)]),
        (Constant(0.5, unit="share"), {"max_epochs": -1, "max_steps": 10}, [(1, 5)]),
        (Constant(0.5, unit="share"), {"max_epochs": 3, "max_steps": 10}, [(1, 5)]),
        (Rounds(1, 1, 2), {"max_epochs": -1, "max_steps": 9}, [(1, 4), (2, 8)]),
        (Rounds(1, 8, 2, unit="step"), {"max_epochs": -1, "max_steps": 10}, [(0, 1), (2, 9)]),
        (Rounds(1, 1, 2), {"max_epochs": 3, "limit_val_batches": 0}, [(1, 4), (2, 8)]),
        (Rounds(1, 1, 2), {"max_epochs": 3, "limit_train_batches": 3}, [(1, 3), (2, 6)]),
        (Rounds(1, 1, 2), {"max_epochs": 3, "accumulate_grad_batches": 4}, [(1, 1), (2, 2)]),
        (Constant(0), {"fast_dev_run": True}, [(0, 0)]),
        (Rounds(5, 5, 8), {"fast_dev_run": True}, []),
        (Rounds(3, 1, 2), {"max_epochs": 6, "val_check_interval": 0.5}, [(3, 12), (4, 16)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "batch"])
def test_events_take_place_on_schedule(tmp_path, schedule: Schedule, options, expected, declared) -> None:
    lit, events = Lit(), Events()
    if declared:
        lit.example_input_array = torch.zeros(2, 2, 3, 4)
    with warnings.catch_warnings(record=True) as caught:
        fit(tmp_path, lit, events, IterativePruning(schedule, Ratio(0.5), Magnitude()), **options)
    assert events.times == expected
    assert widths(lit.net) == ([4, 4, 3] if expected else [8, 8, 3])
    assert not [w for w in caught if "budget" in str(w.message)]


@pytest.mark.parametrize(
    ("schedule", "options", "expected"),
    [
        (Rounds(3, 3, 2, unit="step"), {"max_epochs": -1, "max_steps": 8}, [(0, 3), (1, 6)]),
        (Rounds(1, 1, 2), {"max_epochs": 3}, [(1, 4), (2, 8)]),
        (Rounds(1, 1, 2), {"max_epochs": -1, "max_steps": 9}, [(1, 4), (2, 8)]),
        (Rounds(0.25, 0.5, 2, unit="share"), {"max_epochs": 4}, [(1, 4), (3, 12)]),
        (Constant(0.5, unit="share"), {"max_epochs": -1, "max_steps": 8}, [(1, 4)]),
    ],
    ids=str,
)
def test_data_without_a_length(tmp_path, schedule: Schedule, options, expected) -> None:
    lit, events = Lit(), Events()
    lit.train_dataloader = lambda: DataLoader(Stream(), 8)
    fit(tmp_path, lit, events, IterativePruning(schedule, HALF, "taylor"), **options)
    assert events.times == expected
    assert widths(lit.net) == [4, 4, 3]


def test_steps_wait_for_the_end_of_an_accumulation_window(tmp_path) -> None:
    lit, events = Lit(), Events()
    lit.train_dataloader = lambda: DataLoader(images(), 4)  # 8 batches: windows of 3, 3 and 2
    pruning = IterativePruning(Rounds(1, 1, 4, unit="step"), HALF, "taylor")
    fit(tmp_path, lit, events, pruning, max_epochs=2, accumulate_grad_batches=3)
    assert events.times == [(0, 1), (0, 2), (1, 3), (1, 4)]
    assert events.batches == [3, 6, 0, 3]


def test_shares_wait_for_the_end_of_an_accumulation_window(tmp_path) -> None:
    lit, events = Lit(), Events()
    lit.train_dataloader = lambda: DataLoader(images(), 4)
    pruning = IterativePruning(Constant(0.25, unit="share"), HALF, "taylor")  # batch 2 of 8, inside the first window
    fit(tmp_path, lit, events, pruning, max_epochs=1, accumulate_grad_batches=4)
    assert (events.times, events.batches) == ([(0, 1)], [4])


def test_accumulated_gradients_see_all_batches_of_the_window(tmp_path) -> None:
    """Without batch norm, four batches accumulated are one large batch, also with events between windows."""
    runs = []
    for batch, accumulate in ((32, 1), (8, 4)):
        torch.manual_seed(0)
        lit = Lit(norm=False)
        lit.train_dataloader = lambda size=batch: DataLoader(images(), size)
        pruning = IterativePruning(Rounds(1, 1, 2, unit="step"), HALF, Magnitude())
        fit(tmp_path, lit, pruning, max_epochs=4, accumulate_grad_batches=accumulate)
        runs.append(lit.state_dict())
    assert all(torch.allclose(value, runs[1][name], atol=1e-5) for name, value in runs[0].items())


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.1, "precision": "bf16-mixed", "accumulate_grad_batches": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_precision_and_clipping(tmp_path, options, optimizer) -> None:
    lit, events, check = Lit(optimizer=optimizer), Events(), BeforeAndAfter()
    pruning = IterativePruning(Rounds(1, 3, 2, unit="step"), HALF, "taylor")
    fit(tmp_path, lit, pruning, events, check, max_epochs=3, **options)
    assert check.events == 2
    assert widths(lit.net) == [4, 4, 3]
    assert all(map(math.isfinite, lit.losses))
    kept = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(options.get("precision", ""), torch.float32)
    assert lit.net[0].weight.dtype == kept


@pytest.mark.parametrize("criterion", ["taylor", "magnitude"])
def test_two_optimizers_under_manual_optimization(tmp_path, criterion) -> None:
    gan, events = Adversaries(), Events()
    pruning = IterativePruning(Rounds(4, 4, 2, unit="step"), HALF, criterion, scope=FAKES_STAY)  # two steps a batch
    with warnings.catch_warnings(record=True) as caught:
        trainer = fit(tmp_path, gan, pruning, events, max_epochs=2)
    assert events.times == [(0, 4), (1, 8)]
    assert widths(gan) == [8, 6, 6, 1]
    live = [{id(p) for p in part.parameters()} for part in (gan.generator, gan.critic)]
    held = [{id(p) for g in optimizer.param_groups for p in g["params"]} for optimizer in trainer.optimizers]
    assert held == live
    assert not [w for w in caught if "budget" in str(w.message)]


def test_alternating_networks_are_not_reported_as_frozen(tmp_path) -> None:
    gan, events = Adversaries(), Events()
    gan.generator_every = 3
    fit(tmp_path, gan, IterativePruning(Constant(1), HALF, "taylor", scope=FAKES_STAY), events, max_epochs=2)
    assert widths(gan) == [8, 6, 6, 1]


def test_two_channel_pruners_with_disjoint_scopes(tmp_path) -> None:
    lit, events, check = Lit(), Events(), BeforeAndAfter()
    fit(
        tmp_path,
        lit,
        IterativePruning(Rounds(1, 2, 2), HALF, "taylor", scope=Scope(include=["net.0"])),
        IterativePruning(Rounds(1, 1, 2), Count(1), "taylor", scope=Scope(include=["net.3"])),
        events,
        check,
        max_epochs=5,
    )
    assert events.times == [(1, 4), (1, 4), (2, 8), (3, 12)]
    assert check.events == 4
    assert widths(lit.net) == [4, 6, 3]


def test_the_original_is_the_network_before_any_pruner(tmp_path) -> None:
    """Both prune in the first batch, which provides the example; shares of both refer to the dense network."""
    lit = Lit(width=16)
    first = IterativePruning(Constant(0), HALF, scope=Scope(include=["net.0"]))
    second = IterativePruning(Constant(0), Params(keep=0.5), scope=Scope(include=["net.3"]))
    fit(tmp_path, lit, first, second, max_epochs=1)
    dense = sum(p.numel() for p in Lit(width=16).parameters())
    left = sum(p.numel() for p in lit.parameters())
    assert second.sparsity == pytest.approx(1 - left / dense)
    assert 0.4 * dense < left <= 0.5 * dense


def test_penalty_and_taylor_together(tmp_path) -> None:
    sums = []
    for callbacks in ([], [SlimmingPenalty(0.05)]):
        lit, events = Lit(), Events()
        fit(tmp_path, lit, *callbacks, IterativePruning(Rounds(2, 2, 2), HALF, Taylor()), events, max_epochs=6)
        assert events.times == [(2, 8), (4, 16)]
        assert widths(lit.net) == [4, 4, 3]
        sums.append(sum(lit.net[n].weight.detach().abs().sum().item() for n in (1, 4)))
    assert sums[1] < sums[0]


def test_the_progress_bar_shows_the_sparsity(tmp_path) -> None:
    lit, pruning = Lit(), IterativePruning(Constant(1), HALF)
    trainer = fit(tmp_path, lit, pruning, max_epochs=2)
    assert float(trainer.progress_bar_metrics["sparsity"]) == pytest.approx(pruning.sparsity)


def test_round_to_keeps_multiples(tmp_path) -> None:
    lit = Lit(width=16)
    fit(tmp_path, lit, IterativePruning(Constant(1), Ratio(0.3), granularity=Channels(round_to=4)), max_epochs=2)
    assert widths(lit.net) == [12, 12, 3]


def test_training_mode_and_frozen_parameters_stay(tmp_path) -> None:
    lit = Lit()
    lit.net[3].weight.requires_grad_(False)
    fit(tmp_path, lit, IterativePruning(Constant(1), HALF), max_epochs=2)
    assert [name for name, p in lit.net.named_parameters() if not p.requires_grad] == ["3.weight"]
    assert lit.net.training
