"""Robustness: no corruption, crash or silent failure during training."""

import pytest
import torch
from helpers.scripted import Scripted, loader, pruning
from helpers.training import Events, Lit, fit, trainer_for, widths, zero_share
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_prune import AccuracyGuard, IterativePruning, Scope, Weights, load_pruned
from lightning_prune.budgets import Count, Ratio, Sparsity
from lightning_prune.callbacks import PrunedCheckpoints
from lightning_prune.criteria import Magnitude, Taylor
from lightning_prune.schedules import Constant, Linear, Rounds

HALF = Ratio(0.5)


def test_lbfgs_is_refused_for_channels(tmp_path) -> None:
    class WithLBFGS(Lit):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(MisconfigurationException, match="LBFGS keeps one flat history"):
        fit(tmp_path, WithLBFGS(), IterativePruning(Constant(1), HALF), max_epochs=2)


def test_outputs_collected_on_the_module_do_not_stop_an_event(tmp_path) -> None:
    class Collecting(Lit):
        def on_train_epoch_start(self) -> None:
            self.outputs: list[Tensor] = []

        def training_step(self, batch, batch_idx) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.last = loss * 1.0
            self.outputs.append(loss * 1.0)
            return loss

    lit, events = Collecting(), Events()
    fit(tmp_path, lit, IterativePruning(Constant(2, unit="step"), HALF), events, max_epochs=2)
    assert events.times == [(0, 2)]
    assert widths(lit.net) == [4, 4, 3]
    assert lit.last.requires_grad  # the module's own tensors are as they were


def test_masks_leave_a_frozen_teacher_alone(tmp_path) -> None:
    class Student(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.Linear(6, 6).requires_grad_(False)

    lit = Student()
    fit(tmp_path, lit, IterativePruning(Constant(0), Sparsity(0.5), granularity=Weights()), max_epochs=1)
    assert zero_share(lit.teacher) == 0
    assert zero_share(lit.net) == pytest.approx(0.5, abs=0.01)
    assert "teacher.weight" in Scope(include=["teacher"]).parameters(lit)


def test_best_is_not_an_older_larger_network(tmp_path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss")
    lit = Lit()
    trainer = fit(
        tmp_path, lit, IterativePruning(Constant(2), HALF), checkpoint, max_epochs=3, check_val_every_n_epoch=2
    )
    assert checkpoint.best_model_path == ""
    with pytest.raises(ValueError, match="best"):
        trainer.test(lit, ckpt_path="best")
    assert widths(lit.net) == [4, 4, 3]


def test_a_budget_that_runs_out_is_not_reported_as_reached(tmp_path) -> None:
    lit, events = Lit(), Events()
    pruning = IterativePruning(Linear(0, 1, every=0.1, unit="share"), Count(5), criterion=Taylor())
    with pytest.warns(UserWarning, match="Pruning ends here"):
        fit(tmp_path, lit, pruning, events, max_epochs=11)
    assert pruning.pruner.fraction < 1
    assert all(not module._forward_hooks for module in lit.modules())
    assert pruning.state_dict()["finished"]


def test_an_event_without_statistics_waits(tmp_path) -> None:
    lit, events = Lit(), Events()
    pruning = IterativePruning(Rounds(2, 1, 2, unit="step"), HALF, criterion=Taylor(every_n_steps=3))
    with pytest.warns(UserWarning, match="has to wait: Taylor.*needs gradients"):
        fit(tmp_path, lit, pruning, events, max_epochs=3)
    assert len(events.times) == 2
    assert events.times[0] == (0, 2)
    assert widths(lit.net) == [4, 4, 3]


def test_a_diverged_network_is_not_pruned(tmp_path) -> None:
    class Diverging(Lit):
        def on_train_epoch_end(self) -> None:
            with torch.no_grad():
                self.net[0].weight.fill_(torch.nan)

    lit = Diverging()
    with pytest.warns(UserWarning, match=r"has to wait: Magnitude.*'net.0.weight' scores that are not finite"):
        fit(tmp_path, lit, IterativePruning(Constant(1), HALF, criterion=Magnitude()), max_epochs=2)
    assert widths(lit.net) == [8, 8, 3]


def test_an_event_that_removes_nothing_does_not_count(tmp_path) -> None:
    lit, events = Lit(), Events()
    pruning = IterativePruning(Rounds(1, 1, 8), Ratio(0.25), criterion=Taylor())  # two of eight, in eight rounds
    fit(tmp_path, lit, pruning, events, max_epochs=10)
    assert [report.widths["net.0.weight"] for report in events.reports] == [(8, 7), (7, 6)]
    assert pruning.pruner.fraction == 1


def test_layers_that_only_the_training_step_uses_are_named(tmp_path) -> None:
    class Projecting(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.projection = nn.Linear(6, 2)

        def training_step(self, batch, batch_idx) -> Tensor:
            return super().training_step(batch, batch_idx) + self.projection.weight.square().sum()

    with pytest.warns(UserWarning, match=r"projection.weight are trained, but `forward` does not use them"):
        fit(tmp_path, Projecting(), IterativePruning(Constant(1), HALF), max_epochs=1)


def test_alternating_heads_raise_no_false_alarm(tmp_path) -> None:
    class Alternating(Lit):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs) + self.side(inputs)

        def __init__(self) -> None:
            super().__init__()
            self.side = nn.Sequential(
                nn.Conv2d(2, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
            )

        def training_step(self, batch, batch_idx) -> Tensor:
            part = self.net if batch_idx % 2 else self.side
            return part(batch[0]).square().mean()

    lit = Alternating()
    fit(tmp_path, lit, IterativePruning(Constant(1), HALF, criterion=Taylor()), max_epochs=2)
    assert widths(lit) == [4, 4, 3, 3, 3]


def test_sparsity_counts_the_pruning_of_other_pruners(tmp_path) -> None:
    class Two(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(2, 8, 1),
                nn.ReLU(),
                nn.Conv2d(8, 8, 1),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(8, 3),
            )

    lit = Two()
    dense = sum(p.numel() for p in lit.parameters())
    first = IterativePruning(Constant(1), HALF, scope=Scope(include=["net.0"]))
    second = IterativePruning(Constant(2), HALF, scope=Scope(include=["net.2"]))
    fit(tmp_path, lit, first, second, max_epochs=3)
    expected = 1 - sum(p.numel() for p in lit.parameters()) / dense
    assert first.sparsity == second.sparsity == pytest.approx(expected)


def test_a_resume_with_another_scope_is_refused(tmp_path) -> None:
    trainer = fit(tmp_path, Lit(), IterativePruning(Constant(1), HALF), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = IterativePruning(Constant(1), HALF, scope=Scope(include=["net*"]))
    with pytest.raises(MisconfigurationException, match="holds a pruned network, but no state of IterativePruning"):
        trainer_for(tmp_path, other, max_epochs=4).fit(Lit(), ckpt_path=tmp_path / "last.ckpt")


def test_a_loaded_network_is_pruned_again_and_tested_from_the_dense_class(tmp_path) -> None:
    fit(tmp_path, Lit(), IterativePruning(Constant(1), HALF), max_epochs=2).save_checkpoint(tmp_path / "first.ckpt")
    small = load_pruned(Lit, tmp_path / "first.ckpt")
    trainer = fit(tmp_path, small, IterativePruning(Constant(1), HALF), max_epochs=2)
    assert widths(small.net) == [2, 2, 3]
    trainer.save_checkpoint(tmp_path / "second.ckpt")
    lit = Lit()
    trainer_for(tmp_path, PrunedCheckpoints()).test(
        lit, dataloaders=small.val_dataloader(), ckpt_path=tmp_path / "second.ckpt", verbose=False
    )
    assert widths(lit.net) == [2, 2, 3]


def test_a_second_fit_after_a_stop_trains(tmp_path) -> None:
    lit = Scripted([0.9, 0.9, 0.1, 0.1, 0.9, 0.9])
    callbacks = [pruning(Rounds(1, 1, 3)), AccuracyGuard("score", 0.2)]
    trainer_for(tmp_path, *callbacks, max_epochs=6).fit(lit, loader(), loader())
    stopped = len(lit.history)
    trainer_for(tmp_path, *callbacks, max_epochs=6).fit(lit, loader(), loader())
    assert len(lit.history) > stopped + 4
