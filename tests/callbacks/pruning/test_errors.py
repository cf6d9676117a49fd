"""Errors and warnings of `IterativePruning`: when, and with which message."""

import re
import warnings
from typing import Any

import pytest
import torch
from helpers.training import STEPS, Events, Lit, Stream, fit, images, trainer_for, widths
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from lightning_prune import Channels, IterativePruning, Scope, Weights
from lightning_prune.budgets import Count, MACs, Params, Ratio, Sparsity
from lightning_prune.callbacks.trainer.strategies import check_trainer
from lightning_prune.criteria import BatchNormScale, Magnitude, Taylor
from lightning_prune.schedules import Constant, Cubic, Linear, Rounds

HALF = Ratio(0.5)
LATER = Constant(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LATER, HALF, "tailor"), "criterion='tailor' is not known; did you mean 'Taylor'? (APoZ, BatchNormScale"),
        ((LATER, HALF, "zzz"), "criterion='zzz' is not known; use one of"),
        ((LATER, HALF, Taylor), "IterativePruning criterion=<class 'lightning_prune.criteria.taylor.Taylor'> is not a"),
        (("cubic", HALF), "IterativePruning schedule='cubic' is not a Schedule; it takes an object such as Rounds("),
        ((HALF, LATER), "IterativePruning schedule=Ratio(share=0.5, per_layer=True) is not a Schedule"),
        ((LATER, 0.5), "IterativePruning budget=0.5 is not a Budget; it takes an object such as Params(keep=0.5)"),
        ((LATER, HALF, None, "channels"), "granularity='channels' is not a Granularity; it takes an object such as Ch"),
        ((LATER, HALF, None, None, ["conv1"]), "scope=['conv1'] is not a Scope; it takes an object such as Scope("),
        ((Constant(0), HALF, "taylor"), "Taylor(every_n_steps=1) needs gradients of at least one training step before"),
        ((Rounds(0, 1, 2), HALF, Taylor()), "but Rounds(start=0, every=1, count=2, unit='epoch') starts at 0; let it"),
        ((LATER, MACs(keep=0.5), None, Weights()), "MACs(keep=0.5, per_layer=False) counts what is physically removed"),
        ((LATER, Params(keep=0.5), None, Weights()), "with Weights() use Sparsity or Count"),
        ((LATER, HALF, "taylor", Weights()), "criterion Taylor(every_n_steps=1) does not score weights; use Channels"),
    ],
    ids=str,
)
def test_arguments_that_do_not_go_together(arguments, message) -> None:
    with pytest.raises(MisconfigurationException, match=re.escape(message)):
        IterativePruning(*arguments)


def test_a_ramp_from_0_leaves_a_training_step_before_its_first_removal(tmp_path) -> None:
    lit = Lit()
    fit(tmp_path, lit, IterativePruning(Linear(0, 2), HALF, "taylor"), max_epochs=3)
    assert widths(lit.net) == [4, 4, 3]


def fails_before_the_second_batch(tmp_path, lit: LightningModule, callbacks: Any, message: str, **options: Any) -> None:
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, lit, *callbacks, **{"max_epochs": 5, **options})
    assert len(lit.losses) <= 1  # type: ignore[arg-type]  # every helper network has losses


def test_batch_norm_scale_without_batch_norms(tmp_path) -> None:
    message = r"criterion BatchNormScale\(\) can score no channels of Lit: no batch norm .*Use another criterion"
    fails_before_the_second_batch(tmp_path, Lit(norm=False), IterativePruning(LATER, HALF, BatchNormScale()), message)


@pytest.mark.parametrize("declared", [True, False])
def test_errors_of_the_network_are_raised_before_training(tmp_path, declared) -> None:
    lit = Lit(norm=False)
    if declared:
        lit.example_input_array = torch.zeros(2, 2, 3, 4)
    with pytest.raises(MisconfigurationException, match="BatchNormScale"):
        fit(tmp_path, lit, IterativePruning(LATER, HALF, BatchNormScale()), max_epochs=2)
    assert not lit.losses


def freeze(lit: Lit, layers: tuple[int, ...]) -> Lit:
    for n in layers:
        lit.net[n].requires_grad_(False)
    return lit


def test_taylor_on_frozen_layers(tmp_path) -> None:
    message = (
        r"Taylor\(every_n_steps=1\) needs gradients of 'net.1'; none has reached it so far \(1 such layers\). "
        r"Is it frozen or unused\? Exclude it: Scope\(exclude=\['net.1'\]\)"
    )
    pruning = IterativePruning(Constant(3), HALF, "taylor")
    fails_before_the_second_batch(tmp_path, freeze(Lit(), (0, 1)), pruning, message)


def test_the_named_remedy_works(tmp_path) -> None:
    lit = freeze(Lit(), (0, 1))
    fit(tmp_path, lit, IterativePruning(LATER, HALF, "taylor", scope=Scope(exclude=["net.1"])), max_epochs=2)
    assert widths(lit.net) == [8, 4, 3]


class Idle(LightningModule):
    """Under manual optimization, and one of its two layers is never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.one, self.other, self.head = nn.Linear(24, 6), nn.Linear(24, 6), nn.Linear(12, 2)
        self.example_input_array = torch.zeros(2, 24)
        self.losses: list[float] = []

    def forward(self, x: Any) -> Any:
        return self.head(torch.cat([self.one(x).relu(), self.other(x).detach().relu()], 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = self(batch[0].flatten(1)).square().mean()
        self.manual_backward(loss)
        self.optimizers().step()
        self.losses.append(float(loss.detach()))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)

    def train_dataloader(self) -> Any:
        return DataLoader(images(), 8)


def test_taylor_on_frozen_layers_under_manual_optimization(tmp_path) -> None:
    lit = Idle()
    with pytest.raises(MisconfigurationException, match="needs gradients of 'other'; none has reached it"):
        fit(tmp_path, lit, IterativePruning(Constant(3), HALF, "taylor"), max_epochs=5)
    assert len(lit.losses) == STEPS


@pytest.mark.parametrize("granularity", [Channels(), Weights()], ids=str)
@pytest.mark.parametrize(
    ("scope", "message"),
    [
        (Scope(include=["conv9"]), r"Scope include='conv9' matches nothing in Lit; its layers are named net.0, net.1"),
        (Scope(exclude=["*.conv"]), r"Scope exclude='\*.conv' matches nothing in Lit; its layers are named"),
        (Scope(types=["Conv3d"]), r"Scope\(.*'Conv3d'.*\) matches no parameter of Lit; its layers are named"),
    ],
    ids=str,
)
def test_scopes_without_a_match(tmp_path, granularity, scope, message) -> None:
    pruning = IterativePruning(LATER, Sparsity(0.3), granularity=granularity, scope=scope)
    lit = Lit()
    fails_before_the_second_batch(tmp_path, lit, pruning, message)
    assert not lit.losses


def test_a_scope_without_prunable_units(tmp_path) -> None:
    message = r"Scope\(include=\('net.8',\).*leaves no removable channels in Lit; .* must be kept"
    pruning = IterativePruning(LATER, HALF, scope=Scope(include=["net.8"]))
    fails_before_the_second_batch(tmp_path, Lit(), pruning, message)


@pytest.mark.parametrize("granularity", [Channels(), Weights()], ids=str)
def test_two_pruners_with_overlapping_scopes(tmp_path, granularity) -> None:
    pruners = [
        IterativePruning(LATER, HALF, granularity=granularity, scope=scope)
        for scope in (Scope(include=["net.0", "net.3"]), Scope(exclude=["net.0"]))
    ]
    message = r"two IterativePruning callbacks both prune 'net.3.weight' \(and 0 more\); give them disjoint scopes"
    fails_before_the_second_batch(tmp_path, Lit(), pruners, message)


class TwoPaths(Lit):
    """Two layers that write to the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 8, 1), nn.Conv2d(2, 8, 1)
        self.net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

    def forward(self, images: Any) -> Any:
        return self.net((self.left(images) + self.right(images)).relu())


def test_two_pruners_of_the_same_channels(tmp_path) -> None:
    """Their scopes share no parameter, but their layers write to the same channels."""
    pruners = [
        IterativePruning(Rounds(1, 1, 2), HALF, "taylor", scope=Scope(include=[name])) for name in ("left", "right")
    ]
    message = r"two IterativePruning callbacks both prune the channels of 'net.2.weight'; give them disjoint scopes"
    fails_before_the_second_batch(tmp_path, TwoPaths(), pruners, message)


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        (IterativePruning(LATER, Params(keep=0.01)), r"Params\(keep=0.01.*\) cannot be met: with the fewest channels"),
        (IterativePruning(LATER, MACs(keep=0)), r"MACs\(keep=0.*\) cannot be met: .*of the MACs remain. Widen the sc"),
        (IterativePruning(LATER, Ratio(1)), r"Ratio\(share=1.*\) keeps no channel in a group; use at most share=0.875"),
        (
            IterativePruning(Rounds(1, 1, 5), Count(3)),
            r"Count\(count=3.*\) in 5 events requires 15 units, but only 14 can",
        ),
        (IterativePruning(LATER, Count(15)), r"Count\(count=15.*\): only 14 more units can be removed, with one kept"),
        (IterativePruning(LATER, Ratio(0.2), granularity=Channels(8)), r"removes nothing here: groups of at most 8"),
        (IterativePruning(LATER, Sparsity(1), granularity=Weights()), r"Sparsity\(sparsity=1.*\) keeps no weight"),
        (
            IterativePruning(Rounds(1, 1, 3), Count(300), granularity=Weights()),
            r"Count\(count=300.*\) in 3 events requires 900 weights, but only 741 can be removed",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "pruning",
)
def test_budgets_that_cannot_be_met(tmp_path, pruning, message) -> None:
    fails_before_the_second_batch(tmp_path, Lit(), pruning, message)


@pytest.mark.parametrize("granularity", [Channels(), Weights()], ids=str)
def test_a_budget_that_runs_out_warns_and_training_continues(tmp_path, granularity) -> None:
    """A ramp in shares has no known number of events."""
    count = Count(6) if isinstance(granularity, Channels) else Count(300)
    lit, events = Lit(), Events()
    pruning = IterativePruning(Linear(0, 0.75, every=0.125, unit="share"), count, granularity=granularity)
    with pytest.warns(UserWarning, match=r"Count\(.*\): only \d+ more .* Pruning ends here, at sparsity 0\.\d{4}\."):
        fit(tmp_path, lit, pruning, events, max_epochs=6)
    assert len(events.times) == 2
    assert len(lit.losses) == 6 * STEPS


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (Rounds(1, 2, 3), {"max_epochs": 5}, r"Rounds\(.*\) has its last event at epoch 5, but the training ends at 5"),
        (Cubic(0, 9, unit="step"), {"max_epochs": 2}, r"Cubic\(.*\) has its last event at step 9, but .* ends at 8"),
        (Constant(6, unit="step"), {"max_epochs": -1, "max_steps": 5}, r"at step 6, but the training ends at 5: the"),
        (Constant(2), {"max_epochs": 3, "max_steps": 7}, r"at epoch 2, but the training ends at 1.75: the budget will"),
        (Linear(0, 1, every=0.5, unit="share"), {"max_epochs": 2}, r"last event at share 1, but the training ends"),
        (
            Constant(3, unit="step"),
            {"max_epochs": 1, "accumulate_grad_batches": 2},
            r"will not be reached. End the schedule earlier, or train longer.",
        ),
    ],
    ids=str,
)
def test_a_schedule_that_outlasts_the_training(tmp_path, schedule, options, message) -> None:
    events = Events()
    with pytest.warns(UserWarning, match=message):
        fit(tmp_path, Lit(), IterativePruning(schedule, HALF, Magnitude()), events, **options)
    assert all(report.fraction < 1 for report in events.reports)


@pytest.mark.parametrize("options", [{"max_epochs": -1}, {"max_epochs": -1, "max_time": {"seconds": 30}}], ids=str)
@pytest.mark.parametrize("granularity", [Channels(), Weights()], ids=str)
def test_shares_of_a_training_without_an_end(tmp_path, options, granularity) -> None:
    lit = Lit()
    pruning = IterativePruning(Constant(0.5, unit="share"), HALF, granularity=granularity)
    message = r"Constant\(.*\) is in shares of the training, whose length is not limited: set max_epochs or max_steps"
    fails_before_the_second_batch(tmp_path, lit, pruning, message, **options)
    assert not lit.losses


def test_epochs_and_steps_need_no_end(tmp_path) -> None:
    lit = Lit()
    lit.train_dataloader = lambda: DataLoader(Stream(), 8)

    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == 2

    with warnings.catch_warnings(record=True) as caught:
        fit(tmp_path, lit, IterativePruning(Rounds(1, 1, 2), HALF), Stop(), max_epochs=-1)
    assert widths(lit.net) == [4, 4, 3]
    assert not [w for w in caught if "budget" in str(w.message)]


@pytest.mark.parametrize("granularity", [Channels(), Weights()], ids=str)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_cannot_return_shapes(tmp_path, granularity, method) -> None:
    trainer = trainer_for(tmp_path, strategy=f"ddp_{method}", devices=2)
    message = rf"return pruned shapes from processes started by '{method}' \(DDPStrategy\); use strategy='ddp'"
    with pytest.raises(MisconfigurationException, match=message):
        check_trainer(trainer, granularity)
    trainer = trainer_for(tmp_path, IterativePruning(LATER, HALF), strategy=f"ddp_{method}", devices=2)
    assert any(isinstance(callback, IterativePruning) for callback in trainer.callbacks)


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_sharded_parameters_cannot_change_their_shapes(tmp_path, strategy) -> None:
    trainer = trainer_for(tmp_path)
    trainer.strategy.__class__ = type("Own" + strategy.__name__, (strategy,), {})  # a subclass is refused as well
    message = (
        rf"Channels\(\) cannot change shapes under Own{strategy.__name__}, which shards the parameters; "
        r"use strategy='ddp', or Weights\(\) with ModelParallelStrategy"
    )
    with pytest.raises(MisconfigurationException, match=message):
        check_trainer(trainer, Channels())
    if strategy is ModelParallelStrategy:
        check_trainer(trainer, Weights())
    else:
        with pytest.raises(MisconfigurationException, match="trains other tensors than the parameters"):
            check_trainer(trainer, Weights())


@pytest.mark.parametrize("strategy", ["auto", "ddp", "ddp_find_unused_parameters_true"])
def test_strategies_that_are_fine(tmp_path, strategy) -> None:
    check_trainer(trainer_for(tmp_path, strategy=strategy), Channels())


def test_the_same_pruner_twice(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="Found more than one stateful callback of type `IterativePruning`"):
        trainer_for(tmp_path, IterativePruning(LATER, HALF), IterativePruning(LATER, HALF))


@pytest.mark.parametrize("granularity", [Channels(), Weights()], ids=str)
def test_a_pruner_of_another_network(tmp_path, granularity) -> None:
    pruning = IterativePruning(Constant(1), Sparsity(0.5), granularity=granularity)
    first, second = Lit(), Lit()
    fit(tmp_path, first, pruning, max_epochs=2)
    fit(tmp_path, first, pruning, max_epochs=1)  # its own, which goes on
    with pytest.raises(MisconfigurationException, match="has pruned another network, in 1 events; give every network"):
        fit(tmp_path, second, pruning, max_epochs=2)
    assert not second.losses
