"""Every criterion in a Trainer, and the statistics that it gathers there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.mixed_precision import OVERFLOWS, scaled
from helpers.training import STEPS, Adversaries, Events, Lit, fit, small_net, widths, zero_share
from helpers.weight_scores import MATRICES, NAMES, Scores, masking
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_prune import Channels, IterativePruning, Scope, Weights
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.callbacks.trainer.lightning_packages import MisconfigurationException
from lightning_prune.criteria import (
    CRITERIA,
    SNIP,
    Criterion,
    Fisher,
    GraSP,
    Hessian,
    Movement,
    Taylor,
    Wanda,
    WeightTaylor,
)
from lightning_prune.schedules import Constant, Rounds


@pytest.mark.parametrize("cls", [cls for cls in CRITERIA if cls.scores_channels])
def test_channels_are_removed_and_training_continues(tmp_path: Path, cls: type[Criterion]) -> None:
    lit, events = Lit(), Events()
    fit(tmp_path, lit, IterativePruning(Rounds(1, 1, 2), Ratio(0.5), cls()), events, max_epochs=4)
    assert events.times == [(1, STEPS), (2, 2 * STEPS)]
    assert widths(lit.net) == [4, 4, 3]
    assert not any(module._forward_hooks for module in lit.modules())
    assert all(bool(p.isfinite().all()) for p in lit.parameters())


@pytest.mark.parametrize("cls", [cls for cls in CRITERIA if cls.scores_weights])
def test_weights_are_masked_and_training_continues(tmp_path: Path, cls: type[Criterion]) -> None:
    lit, events = Lit(), Events()
    fit(tmp_path, lit, masking(cls(), Rounds(1, 1, 2)), events, max_epochs=4)
    assert [report.fraction for report in events.reports] == [0.5, 1.0]
    assert zero_share(lit) == pytest.approx(0.5, abs=0.01)
    assert not any(module._forward_hooks for module in lit.modules())


# ---- several pruners, several optimizers


def test_channels_and_movement_together(tmp_path: Path) -> None:
    """The sums continue through the events of both, sliced as the weights."""
    torch.manual_seed(0)
    movement, lit, events = masking(Movement(), Rounds(2, 1, 2)), Lit(norm=False), Events()
    sums: dict[str, Tensor] = {}
    at_events: dict[str, list[Tensor]] = {}

    class Own(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            for name in NAMES:
                parameter = pl_module.get_parameter(name)
                sums[name] = sums.get(name, 0) - parameter.detach() * parameter.grad

        def on_prune(self, trainer: Trainer, pl_module: LightningModule, plan: Any, report: Any) -> None:
            for name in NAMES:
                for dim, index in plan.keep.get(name, {}).items():
                    sums[name] = sums[name].index_select(dim, index)
                if plan.masks:
                    at_events.setdefault(name, []).append(sums[name])

    channels = IterativePruning(Rounds(1, 2, 2), Ratio(0.5), WeightTaylor())
    scores = Scores()
    fit(tmp_path, lit, channels, movement, Own(), scores, events, max_epochs=4)
    assert events.times == [(1, 4), (2, 8), (3, 12), (3, 12)]
    assert widths(lit.net) == [4, 4, 3]
    assert zero_share(lit) == pytest.approx(0.5, abs=0.02)
    assert movement.pruner.statistics is not None
    assert channels.pruner.statistics.totals == {}  # type: ignore[union-attr]  # nothing to be decided any more
    for name in NAMES:
        assert len(at_events[name]) == 2
        assert scores.weights[name].shape == lit.get_parameter(name).shape
        torch.testing.assert_close(scores.weights[name], at_events[name][1])


def test_wanda_follows_the_channels(tmp_path: Path) -> None:
    lit, events = Lit(), Events()
    channels = IterativePruning(Rounds(1, 1, 3), Ratio(0.5))
    fit(tmp_path, lit, channels, masking(Wanda(), Rounds(2, 1, 2)), events, max_epochs=5)
    assert len(events.times) == 5
    assert widths(lit.net) == [4, 4, 3]
    assert zero_share(lit) == pytest.approx(0.5, abs=0.05)


def test_differentiating_twice_does_not_disturb_taylor(tmp_path: Path) -> None:
    found = []
    for others in ([], [masking(GraSP(), Constant(3))], [masking(Hessian(), Constant(3))]):
        torch.manual_seed(0)
        taylor = IterativePruning(Constant(1), Ratio(0.5), Taylor())
        events = Events()
        fit(tmp_path, Lit(), *others, taylor, events, max_epochs=2)
        found.append(events.reports[0].scores)
    for other in found[1:]:
        assert all(torch.equal(values, other[name]) for name, values in found[0].items())


def test_two_optimizers_with_disjoint_parameters(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lit, steps = Adversaries(), []
    lit.generator_every = 2

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            own = {id(p) for group in optimizer.param_groups for p in group["params"]}
            steps.append({n: -p.detach() * p.grad for n, p in pl_module.named_parameters() if id(p) in own})

    pruning = IterativePruning(Constant(5), Sparsity(0.5), Movement(), Weights())
    fit(tmp_path, lit, pruning, Watch(), max_epochs=1)
    assert len(steps) == STEPS + STEPS // 2
    totals = pruning.pruner.statistics.totals  # type: ignore[union-attr]
    assert totals.keys() == {name for name, p in lit.named_parameters() if p.dim() > 1 or name in totals}
    for name, total in totals.items():
        torch.testing.assert_close(total, sum(step[name] for step in steps if name in step))


# ---- what cannot be seen


@pytest.mark.parametrize("criterion", [WeightTaylor(), SNIP(), Movement(), Hessian()], ids=repr)
@pytest.mark.parametrize("granularity", [Channels(), Weights()], ids=repr)
def test_frozen_layers_are_named_with_a_remedy(tmp_path: Path, criterion: Criterion, granularity: Any) -> None:
    lit = Lit(norm=False)
    lit.net[3].requires_grad_(False)
    channels = isinstance(granularity, Channels)
    budget = Ratio(0.5) if channels else Sparsity(0.5)
    scope = Scope() if channels else MATRICES  # frozen weights are masked where a scope names them
    pruning = IterativePruning(Constant(1), budget, criterion, granularity, scope)
    with pytest.raises(
        MisconfigurationException,
        match=r"needs gradients of 'net.3.weight'; none has reached it so far .* Exclude it: Scope\(exclude=\['net.3.w",
    ):
        fit(tmp_path, lit, pruning, max_epochs=2)


def test_parameters_that_nothing_uses_are_named(tmp_path: Path) -> None:
    lit = Lit()
    lit.other = small_net()
    pruning = IterativePruning(Constant(1), Sparsity(0.5), Fisher(), Weights(), Scope(include=["*.weight"]))
    with pytest.raises(MisconfigurationException, match=r"needs gradients of 'other.0.weight'; none has reached it"):
        fit(tmp_path, lit, pruning, max_epochs=2)


# ---- mixed precision


@pytest.mark.parametrize("criterion", [WeightTaylor(), SNIP(), Hessian()], ids=repr)
def test_statistics_do_not_depend_on_the_loss_scale(tmp_path: Path, criterion: Criterion) -> None:
    found = []
    for options in ({}, scaled()):
        torch.manual_seed(0)
        scores = Scores()
        fit(tmp_path, Lit(lr=0.0), masking(criterion), scores, max_epochs=2, **options)
        found.append(scores.totals)
    for name in NAMES:
        plain, half = (totals[name] for totals in found)
        assert float((half - plain).norm() / plain.norm()) < 0.05, name


@pytest.mark.parametrize("criterion", [WeightTaylor(), Hessian()], ids=repr)
def test_steps_that_overflow_are_left_out(tmp_path: Path, criterion: Criterion) -> None:
    pruning = masking(criterion, Constant(5))
    steps: list[int] = []

    class Watch(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            steps.append(pruning.pruner.statistics.steps)  # type: ignore[union-attr]

    fit(tmp_path, Lit(lr=0.0), pruning, Watch(), max_epochs=1, **scaled(OVERFLOWS, backoff_factor=2.0**-30))
    assert steps == [0, 1, 2, 3]
    totals = pruning.pruner.statistics.totals  # type: ignore[union-attr]
    assert all(bool(total.isfinite().all()) for total in totals.values())
