"""Mixed precision with a loss scale: gradients of activations are scaled, and overflowing steps are skipped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.mixed_precision import OVERFLOWS, SCALE, scaled
from helpers.training import BATCH, STEPS, Events, Lit, fit, images, widths
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from lightning_prune import IterativePruning, SlimmingPenalty
from lightning_prune.budgets import Ratio
from lightning_prune.schedules import Constant, Rounds


def scaler_of(trainer: Trainer) -> torch.amp.GradScaler:
    return trainer.precision_plugin.scaler  # type: ignore[attr-defined]


def taylor(start: int = 9) -> IterativePruning:
    return IterativePruning(Constant(start), Ratio(0.5), criterion="taylor")


def gathered(folder: Path, lit: LightningModule, *callbacks: Callback, **options: Any) -> tuple[dict[str, Tensor], int]:
    """The Taylor statistics of one epoch, and the number of steps in them."""
    pruning = taylor()
    fit(folder, lit, pruning, *callbacks, **{"max_epochs": 1, **options})
    assert pruning.pruner.statistics is not None
    return pruning.pruner.statistics.totals, pruning.pruner.statistics.steps


def test_a_loss_scale_is_in_force(tmp_path: Path) -> None:
    class Sees(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
            norms.append(float(pl_module.net[8].bias.grad.norm()))  # type: ignore[index, union-attr, operator]

    norms: list[float] = []
    for options in ({}, scaled()):
        torch.manual_seed(0)
        fit(tmp_path, Lit(lr=0.0), Sees(), max_epochs=1, **options)
    plain, multiplied = norms[:STEPS], norms[STEPS:]
    assert [m / p for m, p in zip(multiplied, plain, strict=True)] == pytest.approx([SCALE] * STEPS, rel=0.02)


@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_taylor_statistics_do_not_depend_on_the_scale(tmp_path: Path, scale: float) -> None:
    results = []
    for options in ({}, scaled(scale)):
        torch.manual_seed(0)
        results.append(gathered(tmp_path, Lit(lr=0.0), **options))  # the same weights at every step
    (plain, steps), (half, half_steps) = results
    assert steps == half_steps == STEPS
    assert plain.keys() == half.keys()
    assert plain
    for name, total in plain.items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], total, rtol=0.02, atol=0.01 * float(total.max()), msg=name)


def test_accumulated_batches_are_each_divided_by_the_scale(tmp_path: Path) -> None:
    results = []
    for options in ({}, scaled()):
        torch.manual_seed(0)
        results.append(gathered(tmp_path, Lit(lr=0.0), accumulate_grad_batches=2, **options))
    (plain, steps), (half, half_steps) = results
    assert steps == half_steps == STEPS
    for name, total in plain.items():
        torch.testing.assert_close(half[name], total, rtol=0.02, atol=0.01 * float(total.max()), msg=name)


class Overflows(Callback):
    """Records for each batch whether its gradients are finite, and the number of gathered steps."""

    def __init__(self) -> None:
        self.finite: list[bool] = []
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pruning = next(c for c in trainer.callbacks if isinstance(c, IterativePruning))  # type: ignore[attr-defined]
        self.steps.append(pruning.pruner.statistics.steps)  # type: ignore[union-attr]

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finite.append(all(bool(torch.isfinite(p.grad).all()) for p in pl_module.parameters()))  # type: ignore[arg-type]


def test_steps_that_overflow_are_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lit, watch = Lit(lr=0.0), Overflows()
    totals, steps = gathered(tmp_path, lit, watch, **scaled(OVERFLOWS, backoff_factor=2.0**-30))
    assert watch.finite == [False, True, True, True]
    assert watch.steps == [0, 1, 2, 3]
    assert steps == STEPS - 1
    assert all(bool(torch.isfinite(total).all()) for total in totals.values())
    plain: dict[str, Tensor] = {}
    for number in range(1, STEPS):  # without mixed precision, the same batches one by one
        torch.manual_seed(0)
        one, _ = gathered(tmp_path, Only(number), limit_train_batches=1)
        plain = {name: plain.get(name, torch.zeros(())) + total for name, total in one.items()}
    for name, total in plain.items():
        torch.testing.assert_close(totals[name], total, rtol=0.02, atol=0.01 * float(total.max()), msg=name)


class Only(Lit):
    """Trains on one batch of the epoch."""

    def __init__(self, number: int) -> None:
        super().__init__(lr=0.0)
        self.number = number

    def train_dataloader(self) -> Any:
        return DataLoader(Subset(images(), range(self.number * BATCH, (self.number + 1) * BATCH)), batch_size=BATCH)


def test_epochs_without_a_finite_step_gather_nothing_and_do_not_raise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    watch = Overflows()
    totals, steps = gathered(tmp_path, Lit(lr=0.0), watch, limit_train_batches=1, max_epochs=3, **scaled(OVERFLOWS))
    assert watch.finite == [False] * 3
    assert steps == 0
    assert totals == {}


class Idle(Lit):
    """Has a batch norm whose scale does not affect the loss, but receives a gradient of zero."""

    def __init__(self) -> None:
        super().__init__(optimizer="plain", lr=0.5)
        self.idle = nn.BatchNorm1d(3)
        self.idle.weight.data = torch.tensor([2.0, -1.0, 0.5])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch[0])
        return F.cross_entropy(logits + 0.0 * self.idle(logits.detach()), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.hparams.lr)  # type: ignore[attr-defined]


@pytest.mark.parametrize("scale", [1.0, 2.0**4, SCALE])
def test_the_penalty_does_not_depend_on_the_scale(tmp_path: Path, scale: float) -> None:
    lit = Idle()
    before = lit.idle.weight.detach().clone()
    fit(tmp_path, lit, SlimmingPenalty(0.01), max_epochs=2, **scaled(scale))
    moved = before - lit.idle.weight.detach()
    torch.testing.assert_close(moved, 2 * STEPS * 0.5 * 0.01 * before.sign(), rtol=0, atol=1e-6)


def test_the_penalty_is_skipped_with_an_overflowing_step(tmp_path: Path) -> None:
    lit = Idle()
    before = lit.idle.weight.detach().clone()
    trainer = fit(tmp_path, lit, SlimmingPenalty(0.01), max_epochs=1, **scaled(OVERFLOWS, backoff_factor=2.0**-30))
    assert scaler_of(trainer).get_scale() == SCALE
    moved = before - lit.idle.weight.detach()
    torch.testing.assert_close(moved, (STEPS - 1) * 0.5 * 0.01 * before.sign(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_events_take_place_and_training_continues(tmp_path: Path, optimizer: str) -> None:
    lit, events = Lit(optimizer=optimizer), Events()
    pruning = IterativePruning(Rounds(2, 1, 2), Ratio(0.5), criterion="taylor")
    fit(tmp_path, lit, pruning, SlimmingPenalty(1e-3), events, max_epochs=20, **scaled())
    assert events.times == [(2, 2 * STEPS), (3, 3 * STEPS)]
    assert widths(lit.net) == [4, 4, 3]
    assert all(bool(torch.isfinite(p).all()) for p in lit.parameters())
    assert sum(lit.losses[-STEPS:]) < sum(lit.losses[4 * STEPS : 5 * STEPS])
