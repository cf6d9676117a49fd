"""Pruning together with Lightning's callbacks, and the network after training."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import STEPS, Events, Lit, fit, images, same, small_net, trainer_for, widths
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelSummary,
    RichModelSummary,
)
from torch import nn
from torch.utils.data import DataLoader

from lightning_prune import IterativePruning, Weights
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.schedules import Cubic, Rounds

METHODS = {
    "taylor": lambda: IterativePruning(Rounds(1, 1, 2), Ratio(0.5), "taylor"),
    "masks": lambda: IterativePruning(Cubic(1, 3), Sparsity(0.6), granularity=Weights()),
}
METHOD = pytest.mark.parametrize("method", METHODS)
ORDER = pytest.mark.parametrize("first", [True, False])


def in_order(first: bool, pruning: Callback, other: Callback) -> list[Callback]:
    return [pruning, other] if first else [other, pruning]


def zeros(lit: Lit) -> list[int]:
    return [int((parameter == 0).sum()) for parameter in lit.parameters()]


class Finding(Lit):
    """Supports the batch size finder and the learning rate finder."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 2
        self.hparams.lr = 0.01

    def train_dataloader(self) -> Any:
        return DataLoader(images(), batch_size=self.batch_size)


@ORDER
@METHOD
@pytest.mark.parametrize("finder", ["batch size", "learning rate"])
def test_finders_do_not_affect_pruning(tmp_path, finder, method, first) -> None:
    """The control sets their results by hand, and must end with the same network."""

    def run(folder: Path, *callbacks: Callback, **found: Any) -> tuple[Finding, list[tuple[int, int]]]:
        torch.manual_seed(0)
        lit, events = Finding(), Events()
        lit.batch_size = found.get("batch_size", lit.batch_size)
        lit.hparams.lr = found.get("lr", lit.hparams.lr)
        fit(folder, lit, *callbacks, events, max_epochs=4)
        return lit, events.times

    finding = (
        BatchSizeFinder(steps_per_trial=1, init_val=2, max_trials=2)
        if finder == "batch size"
        else LearningRateFinder(num_training_steps=8)
    )
    lit, times = run(tmp_path / "a", *in_order(first, METHODS[method](), finding))
    control, expected = run(tmp_path / "b", METHODS[method](), batch_size=lit.batch_size, lr=lit.hparams.lr)
    assert lit.batch_size == (4 if finder == "batch size" else 2)
    assert times == expected
    assert len(times) == 2
    assert widths(lit.net) == widths(control.net)
    assert sum(zeros(lit)) == sum(zeros(control))
    if finder == "batch size":
        assert same(dict(lit.named_parameters()), dict(control.named_parameters()))


@ORDER
@METHOD
def test_accumulation_that_changes(tmp_path, method, first) -> None:
    lit, events = Lit(), Events()
    scheduler = GradientAccumulationScheduler({0: 1, 1: 2, 2: 4})
    fit(tmp_path, lit, *in_order(first, METHODS[method](), scheduler), events, max_epochs=4)
    first_epoch = 1 if method == "taylor" else 2
    steps = [0, STEPS, STEPS + STEPS // 2, STEPS + STEPS // 2 + 1]  # done when an epoch begins
    assert events.times == [(epoch, steps[epoch]) for epoch in (first_epoch, first_epoch + 1)]
    assert widths(lit.net) == ([4, 4, 3] if method == "taylor" else [8, 8, 3])


@ORDER
@METHOD
def test_early_stopping_restarts_at_each_size(tmp_path, method, first) -> None:
    """Patience is reset after each event."""

    class Falling(Lit):
        """Logs a metric that gets worse all the time."""

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("score", 1.0 / (1 + self.trainer.current_epoch))

    stopping = EarlyStopping("score", patience=2, mode="max")
    lit, events = Falling(), Events()
    trainer = fit(tmp_path, lit, *in_order(first, METHODS[method](), stopping), events, max_epochs=20)
    last = events.times[-1][0]
    assert len(events.times) == 2
    assert trainer.current_epoch - 1 == stopping.stopped_epoch == last + 2


class WithBackbone(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = self.net[:7], self.net[7:]
        del self.net

    def forward(self, inputs: Any) -> Any:
        return self.head(self.backbone(inputs))

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trained, 0.05, momentum=0.9)


@pytest.mark.parametrize("first", [True, False, None])
def test_a_backbone_that_is_unfrozen(tmp_path, first) -> None:
    """Frozen parameters are pruned before and after they join the optimizer, and a resumed run ends the same.

    Without pruning as a control: resumed after the thaw, Lightning itself goes on with another learning rate.
    """

    def run(ckpt_path: Any = None) -> tuple[WithBackbone, Trainer]:
        torch.manual_seed(0)
        lit = WithBackbone()
        thawing = BackboneFinetuning(unfreeze_backbone_at_epoch=2, verbose=False)
        pruning = IterativePruning(Rounds(1, 2, 2), Ratio(0.5))
        callbacks = [thawing] if first is None else in_order(first, pruning, thawing)
        save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        trainer = trainer_for(tmp_path, *callbacks, *([] if ckpt_path else [save]), max_epochs=5)
        trainer.fit(lit, ckpt_path=ckpt_path)
        return lit, trainer

    lit, trainer = run()
    assert widths(lit) == ([8, 8, 3] if first is None else [4, 4, 3])
    groups = trainer.optimizers[0].param_groups
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in lit.parameters()}
    for epoch in (0, 1, 2, 3):
        resumed, _ = run(tmp_path / f"epoch={epoch}.ckpt")
        assert widths(resumed) == widths(lit)
        assert same(dict(lit.state_dict()), dict(resumed.state_dict())) == (epoch < 2), epoch


@pytest.mark.parametrize("summary", [ModelSummary, RichModelSummary])
def test_summaries(tmp_path, summary) -> None:
    lit, pruning = Lit(), METHODS["taylor"]()
    fit(tmp_path, lit, pruning, summary(max_depth=-1), max_epochs=3)
    fit(tmp_path, lit, pruning, summary(max_depth=-1), max_epochs=1)
    assert widths(lit.net) == [4, 4, 3]


@METHOD
def test_validation_before_the_training_and_as_a_sanity_check(tmp_path, method) -> None:
    def run(before: bool) -> Lit:
        torch.manual_seed(0)
        lit, pruning = Lit(), METHODS[method]()
        trainer = trainer_for(tmp_path, pruning, max_epochs=4, num_sanity_val_steps=2 if before else 0)
        if before:
            trainer.validate(lit, verbose=False)
        trainer.fit(lit)
        return lit

    assert same(dict(run(True).state_dict()), dict(run(False).state_dict()))


@METHOD
def test_the_result_is_plain_pytorch(tmp_path, method) -> None:
    lit = Lit()
    before = {path: set(vars(module)) for path, module in lit.net.named_modules()}
    trainer = fit(tmp_path, lit, METHODS[method](), max_epochs=4)
    net = trainer.lightning_module.net
    assert {path: set(vars(module)) for path, module in net.named_modules()} == before
    kinds = [(type(a), type(b)) for a, b in zip(net.modules(), small_net().modules(), strict=True)]
    assert all(a is b for a, b in kinds)
    assert len(net._state_dict_hooks) == 1  # it writes what was pruned
    for module in net.modules():
        hooks = {key: value for key, value in vars(module).items() if "hook" in key and isinstance(value, dict)}
        assert [key for key, value in hooks.items() if value] == (["_state_dict_hooks"] if module is net else [])
    built = small_net(4 if method == "taylor" else 8)
    built.load_state_dict(net.state_dict())
    inputs = images()[:][0]
    with torch.no_grad():
        assert torch.equal(built.eval()(inputs), net.eval()(inputs))
    torch.save(net, tmp_path / "net.pt")
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "net.pt", weights_only=False)(inputs), net(inputs))
    assert isinstance(copy.deepcopy(net), nn.Sequential)
