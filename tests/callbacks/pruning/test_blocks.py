"""Removal of whole blocks during training: resume, rollback, averaged copies, with channels and masks."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.judged import guard
from helpers.ranks import launch
from helpers.residual import Block, LitResidual
from helpers.resumable import Loader, Randomness, without_metrics
from helpers.training import BATCH, Events, fit, images, same, trainer_for
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune import Blocks, IterativePruning, Scope, Weights, load_pruned
from lightning_prune.budgets import Count, Params, Ratio, Sparsity
from lightning_prune.callbacks import Distillation, PruningSummary, Rewind, SparsityLogger
from lightning_prune.criteria import BlockInfluence, Criterion, Sensitivity
from lightning_prune.schedules import Constant, Cubic, Rounds

EMA: Any = getattr(lightning_callbacks, "EMAWeightAveraging", None)


def blocks(criterion: Any = None, count: int = 3, start: int = 1, scope: Scope | None = None) -> IterativePruning:
    return IterativePruning(Rounds(start, 1, count), Count(1), criterion or BlockInfluence(), Blocks(), scope)


METHODS: dict[str, Callable[[], list[Callback]]] = {
    "nothing": lambda: [],
    "influence": lambda: [blocks()],
    "sensitivity": lambda: [blocks(Sensitivity())],
    "in_steps": lambda: [IterativePruning(Rounds(3, 5, 2, "step"), Ratio(0.5), BlockInfluence(2), Blocks())],
    "with_channels": lambda: [blocks(), IterativePruning(Rounds(1, 2, 2), Ratio(0.5), criterion="taylor")],
    "channels_first": lambda: [IterativePruning(Rounds(1, 1, 3), Ratio(0.5), criterion="apoz"), blocks()],
    "with_masks": lambda: [
        blocks(),
        IterativePruning(Cubic(0, 3), Sparsity(0.8), "weighttaylor", Weights()),
    ],
    "with_ema": lambda: [blocks(), EMA(decay=0.5)],
    "with_rewind": lambda: [Rewind(), blocks()],
}


def gone(lit: LightningModule) -> list[str]:
    return [name for name in ("net.1", "net.2", "net.3", "net.4") if type(lit.get_submodule(name)) is nn.Identity]


def held(trainer: Trainer) -> list[int]:
    return [id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]]


class Checked(Callback):
    """Checks that the optimizer holds exactly the remaining parameters, in order, and their state."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert held(trainer) == [id(p) for p in pl_module.parameters()]
        assert {id(p) for o in trainer.optimizers for p in o.state} <= {id(p) for p in pl_module.parameters()}
        assert all(p.grad is None or p.grad.shape == p.shape for p in pl_module.parameters())


# --- training


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_blocks_are_removed_during_training(tmp_path: Path, optimizer: str) -> None:
    lit, events, pruning = LitResidual(optimizer), Events(), blocks()
    trainer = fit(tmp_path, lit, pruning, Checked(), events, max_epochs=5)
    assert [report.plan.removed_modules for report in events.reports] == [("net.4",), ("net.3",), ("net.2",)]
    assert gone(lit) == ["net.2", "net.3", "net.4"]
    assert pruning.sparsity == pytest.approx(1 - sum(p.numel() for p in lit.parameters()) / 1575)
    assert [entry["removed"] for entry in pruning._events.history.events] == [["net.4"], ["net.3"], ["net.2"]]
    assert trainer.optimizers[0].state.keys() == set(lit.parameters())
    assert not any(module._forward_hooks for module in lit.modules())
    assert lit.losses[-1] < lit.losses[0]


def test_training_equals_that_of_the_network_built_without_the_block(tmp_path: Path) -> None:
    """The control is built without the block, with the weights and optimizer state of the remaining ones."""
    before: dict[str, Any] = {}

    class Before(Callback):
        def on_before_prune(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
            before["weights"] = {name: value.clone() for name, value in pl_module.state_dict().items()}
            state = trainer.optimizers[0].state
            before["momentum"] = {n: state[p]["momentum_buffer"].clone() for n, p in pl_module.named_parameters()}

    lit = LitResidual()
    fit(tmp_path, lit, blocks(count=1), Before(), max_epochs=2)
    control = LitResidual()
    control.net[4] = nn.Identity()
    control.load_state_dict({n: v for n, v in before["weights"].items() if not n.startswith("net.4")})
    optimizer = torch.optim.SGD(control.parameters(), 0.05 * 0.9, momentum=0.9, weight_decay=1e-3)
    for name, parameter in control.named_parameters():
        optimizer.state[parameter]["momentum_buffer"] = before["momentum"][name]
    for inputs, labels in DataLoader(images(), batch_size=BATCH):
        optimizer.zero_grad()
        F.cross_entropy(control(inputs), labels).backward()
        optimizer.step()
    assert same(dict(lit.state_dict()), dict(control.state_dict()))


def test_a_group_of_an_optimizer_may_become_empty(tmp_path: Path) -> None:
    class Grouped(LitResidual):
        def configure_optimizers(self) -> Any:
            groups = [{"params": list(child.parameters()), "lr": 0.01 * n} for n, child in enumerate(self.net)]
            optimizer = torch.optim.SGD([g for g in groups if g["params"]], 0.1, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    lit = Grouped()
    trainer = fit(tmp_path, lit, blocks(count=1), Checked(), max_epochs=3)
    assert [len(group["params"]) for group in trainer.optimizers[0].param_groups] == [2, 6, 6, 6, 0, 2]


# --- sensitivity in a Trainer


class Scored(LitResidual):
    """Logs an accuracy as a torchmetrics object, as a number, and at the end of the epoch; keeps its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy, self.outputs = MulticlassAccuracy(3, average="micro"), []
        self.validated: list[int] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        self.outputs.append((logits.argmax(1) == batch[1]).float())
        self.log("metric", self.accuracy)
        self.log_dict({"plain": self.outputs[-1].mean(), "loss": F.cross_entropy(logits, batch[1])})

    def on_validation_epoch_end(self) -> None:
        self.log("late", torch.cat(self.outputs).mean())
        self.validated.append(len(self.outputs))
        self.outputs.clear()


def by_hand(weights: dict[str, Any], count: int) -> dict[str, tuple[float, float]]:
    """Accuracy and loss without each block, and with all, on the first validation batches."""
    found = {}
    for name in ("", "1", "2", "3", "4"):
        lit = Scored()
        lit.load_state_dict(weights)
        if name:
            lit.net[int(name)] = nn.Identity()
        inputs, labels = images(24, seed=1)[: count * BATCH]
        with torch.no_grad():
            logits = lit.eval()(inputs)
        accuracy = (logits.argmax(1) == labels).double().mean()
        found[name] = (float(accuracy), float(F.cross_entropy(logits.double(), labels)))
    return found


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("monitor", ["metric", "plain", "late", "loss"])
def test_scores_are_the_validation_losses_without_each_block(tmp_path: Path, monitor: str, count: int) -> None:
    class Before(Callback):
        def on_before_prune(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
            self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}

    lit, events, before = Scored(), Events(), Before()
    criterion = Sensitivity(monitor, "min" if monitor == "loss" else "max", batches=count)
    fit(tmp_path, lit, blocks(criterion, count=1, start=2), before, events, max_epochs=3)
    expected = by_hand(before.weights, min(count, 3))
    (report,) = events.reports
    for name in ("1", "2", "3", "4"):
        accuracy, loss = (expected[name][n] - expected[""][n] for n in (0, 1))
        drop = loss if monitor == "loss" else -accuracy
        assert float(report.scores[f"net.{name}"]) == pytest.approx(drop, abs=2e-6), name
    assert lit.validated == [3, 3, 3]


@dataclass(frozen=True)
class Picked(Criterion):
    """Scores the block with this name lowest."""

    name: str
    scores_blocks = True

    def score_blocks(self, names: Any, scoring: Any) -> Tensor:
        return torch.tensor([float(name != self.name) for name in names])


def test_measuring_has_no_side_effects(tmp_path: Path) -> None:
    """Random numbers, metrics, batch norms and logs equal those of a training without measurements."""
    found, criterion = [], Sensitivity("plain")
    for _ in range(2):
        lit, events = Scored(), Events()
        lit.net[7].p = 0.3
        trainer = fit(tmp_path, lit, blocks(criterion, 1, 2), events, max_epochs=4)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "sparsity"}
        found.append((dict(lit.state_dict()), lit.validated, logged, torch.get_rng_state()))
        criterion = Picked(events.reports[0].plan.removed_modules[0])
    assert len(found[0][2]) >= 4
    assert same(*found)


@pytest.mark.parametrize(
    ("criterion", "options", "message"),
    [
        (Sensitivity("nose"), {}, "monitor='nose' is not logged by validation; it logs late, loss, metric, plain"),
        (Sensitivity(), {}, "validation_step returns, and it returns none; it logs loss, metric, plain: name one"),
        (Sensitivity("plain"), {"limit_val_batches": 0}, "measures on validation data, but no validation runs"),
    ],
)
def test_unmeasurable_metrics(tmp_path: Path, criterion: Any, options: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, Scored(), blocks(criterion, 1), max_epochs=2, **options)


@pytest.mark.parametrize(
    ("monitor", "options"),
    [("nose", {"num_sanity_val_steps": 1}), ("nose", {}), ("plain", {"limit_val_batches": 0})],
)
def test_an_unmeasurable_metric_is_refused_before_the_first_step(tmp_path: Path, monitor: str, options: Any) -> None:
    trainer = trainer_for(tmp_path, blocks(Sensitivity(monitor), start=5), max_epochs=8, **options)
    with pytest.raises(MisconfigurationException, match=r"not logged by validation; it logs|no validation runs"):
        trainer.fit(Scored())
    assert trainer.global_step == 0


def test_validation_may_log_in_any_form(tmp_path: Path) -> None:
    """Not in the sanity check, not for each batch, or with several loaders under a common name."""

    class Whimsical(LitResidual):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if not self.trainer.sanity_checking and batch_idx == 1:
                self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

        def val_dataloader(self) -> Any:
            return [super().val_dataloader()] * 2

    lit = Whimsical()
    fit(tmp_path, lit, blocks(Sensitivity("val_loss", "min"), count=1), max_epochs=2, num_sanity_val_steps=2)
    assert len(gone(lit)) == 1


def test_a_training_without_events_needs_no_validation(tmp_path: Path) -> None:
    pruning, checkpoint = blocks(Sensitivity(), count=1), ModelCheckpoint(tmp_path, save_last=True)
    fit(tmp_path, LitResidual(), pruning, checkpoint, max_epochs=2)
    lit = LitResidual()
    trainer = trainer_for(tmp_path, blocks(Sensitivity(), count=1), max_epochs=3, limit_val_batches=0)
    trainer.fit(lit, ckpt_path=tmp_path / "last.ckpt")
    assert len(gone(lit)) == 1


def test_validation_that_has_not_run_yet_is_set_up(tmp_path: Path) -> None:
    lit = LitResidual()
    fit(tmp_path, lit, IterativePruning(Constant(0), Count(1), Sensitivity(), Blocks()), max_epochs=2,
        check_val_every_n_epoch=2)  # fmt: skip
    assert len(gone(lit)) == 1


def test_nothing_is_measured_without_a_due_event(tmp_path: Path) -> None:
    class Counted(LitResidual):
        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
            evaluations.append(self.trainer.current_epoch)
            return super().validation_step(batch, batch_idx)

    evaluations: list[int] = []
    budget = Ratio(0.25)  # one block, at the end of the schedule
    fit(tmp_path, Counted(), IterativePruning(Rounds(1, 1, 3), budget, Sensitivity(), Blocks()), max_epochs=4)
    assert [evaluations.count(epoch) for epoch in range(4)] == [3 + 3, 3, 3 + 5 * 3, 3]  # at first, whether it can be


# --- checkpoints


class Noisy(LitResidual):
    """With dropout, and a loader with a saved position; Lightning resumes it exactly."""

    def __init__(self) -> None:
        super().__init__("adamw", dropout=0.2)

    def train_dataloader(self) -> Any:
        return Loader()

    def val_dataloader(self) -> Any:
        return DataLoader(images(24, seed=1), BATCH, generator=torch.Generator())


def train(folder: Path, callbacks: list[Callback], ckpt_path: Path | None = None, **options: Any) -> tuple[Any, ...]:
    lit = Noisy()
    torch.manual_seed(0 if ckpt_path is None else 1)
    trainer = trainer_for(folder, *callbacks, Randomness(), **{"max_epochs": 5, **options})
    trainer.fit(lit, ckpt_path=ckpt_path)
    optimizer = trainer.optimizers[0].state_dict()
    states = [callback.state_dict() for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
    return lit, {"weights": dict(lit.state_dict()), "optimizer": optimizer, "callbacks": states}


@pytest.mark.parametrize("method", [name for name in METHODS if EMA is not None or name != "with_ema"])
def test_a_resumed_training_ends_as_the_uninterrupted_one(tmp_path: Path, method: str) -> None:
    save = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=3)
    _, whole = train(tmp_path, [*METHODS[method](), save])
    files = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    assert len(files) == 6
    for file in files[1:]:
        lit, resumed = train(tmp_path / "resumed", METHODS[method](), file)
        if file.stem == "step=12":  # of an epoch, whose validation Lightning leaves out
            assert same(without_metrics(resumed), without_metrics(whole))
        else:
            assert same(resumed, whole), file
        assert held(lit.trainer) == [id(p) for p in lit.parameters()]
    assert len(gone(lit)) == {"nothing": 0, "in_steps": 2}.get(method, 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LitResidual, Path]:
    folder = tmp_path_factory.mktemp("trained")
    lit = LitResidual()
    channels = IterativePruning(Constant(2), Ratio(0.5))
    fit(folder, lit, blocks(), channels, ModelCheckpoint(folder, "{epoch}", save_top_k=-1), max_epochs=5)
    return lit, folder


def test_checkpoints_load(trained: Any) -> None:
    lit, folder = trained
    inputs = images()[:][0]
    for epoch, without in enumerate([[], ["net.4"], ["net.3", "net.4"], ["net.2", "net.3", "net.4"]]):
        path = folder / f"epoch={epoch}.ckpt"
        for loaded in (load_pruned(LitResidual, path), LitResidual.load_from_checkpoint(path)):
            assert gone(loaded) == without
            saved = torch.load(path, weights_only=True)["state_dict"]
            assert same(dict(loaded.state_dict()), dict(saved))
    assert torch.equal(load_pruned(LitResidual, folder / "epoch=4.ckpt").eval()(inputs), lit.eval()(inputs))
    inner = load_pruned(LitResidual().net, folder / "epoch=4.ckpt")
    assert torch.equal(inner.eval()(inputs), lit(inputs))


def test_loading_an_older_larger_checkpoint_and_the_final_one_again(trained: Any, tmp_path: Path) -> None:
    lit, folder = trained
    final = {name: value.clone() for name, value in lit.state_dict().items()}
    trainer = trainer_for(tmp_path)
    for epoch, without in ((0, 0), (2, 2), (1, 1), (4, 3)):
        path = folder / f"epoch={epoch}.ckpt"
        (result,) = trainer.test(lit, ckpt_path=path, verbose=False)
        assert len(gone(lit)) == without
        (expected,) = trainer.test(load_pruned(LitResidual, path), verbose=False)
        assert result == expected
    assert same(dict(lit.state_dict()), final)


def test_training_continues_from_a_dense_checkpoint_in_the_same_process(trained: Any, tmp_path: Path) -> None:
    """The blocks are restored, the optimizer trains them, and pruning continues from the checkpoint."""
    lit, folder = trained
    trainer = trainer_for(tmp_path, blocks(), IterativePruning(Constant(2), Ratio(0.5)), Checked(), max_epochs=5)
    trainer.fit(lit, ckpt_path=folder / "epoch=0.ckpt")
    assert len(gone(lit)) == 3


def test_a_second_fit_continues(tmp_path: Path) -> None:
    lit, pruning = LitResidual(), blocks(count=3)
    fit(tmp_path, lit, pruning, max_epochs=3)
    assert len(gone(lit)) == 2
    trainer_for(tmp_path, pruning, Checked(), max_epochs=4).fit(lit)
    assert len(gone(lit)) == 3


def test_a_scope_whose_blocks_are_all_removed_resumes(tmp_path: Path) -> None:
    scope = Scope(include=["net.2"], types=["Block"])
    save = ModelCheckpoint(tmp_path, "last")
    fit(tmp_path, LitResidual(), blocks(count=1, scope=scope), save, max_epochs=3)
    lit = LitResidual()
    trainer_for(tmp_path, blocks(count=1, scope=scope), max_epochs=4).fit(lit, ckpt_path=tmp_path / "last.ckpt")
    assert gone(lit) == ["net.2"]


# --- rollback


class Judged(LitResidual):
    """Logs scripted validation metrics."""

    def __init__(self, script: list[float], optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.script, self.validations = script, 0

    def on_validation_epoch_end(self) -> None:
        self.log("score", self.script[min(self.validations, len(self.script) - 1)])
        self.validations += 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", ["influence", "with_channels", "with_masks", "with_ema"])
def test_a_rollback_restores_the_block(tmp_path: Path, method: str, optimizer: str) -> None:
    """Also in the optimizer, at its former position; training then equals one without the event."""
    if EMA is None and method == "with_ema":
        pytest.skip("this version of Lightning has no EMA")
    seen: list[Any] = []

    def all_of_it(trainer: Trainer, lit: LightningModule) -> dict[str, Any]:
        names = {id(p): name for name, p in lit.named_parameters()}
        averages = [c._average_model.module.state_dict() for c in trainer.callbacks if isinstance(c, EMA or ())]
        return {
            "weights": {name: value.clone() for name, value in lit.state_dict().items()},
            "trained": [names[number] for number in held(trainer)],
            "state": copy.deepcopy([optimizer.state_dict()["state"] for optimizer in trainer.optimizers]),
            "averages": copy.deepcopy([dict(state) for state in averages]),
            "pruners": [
                copy.deepcopy(c.pruner.state_dict()) for c in trainer.callbacks if isinstance(c, IterativePruning)
            ],
        }

    class Seeing(Callback):
        def on_before_prune(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
            if trainer.current_epoch == 2 and not seen:
                seen.append(all_of_it(trainer, pl_module))

        def on_rollback(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append(all_of_it(trainer, pl_module))

    lit = Judged([0.9, 0.9, 0.5], optimizer)
    pruners = METHODS[method]()
    after = pruners.pop() if method == "with_ema" else Callback()
    trainer = trainer_for(tmp_path, *pruners, guard(), Seeing(), after, max_epochs=5)
    torch.manual_seed(0)
    trainer.fit(lit)
    assert gone(lit) == ["net.4"]  # the second event was taken back
    accepted, back = seen
    assert "net.4.bn.weight" not in accepted["weights"]
    assert same(back, accepted)
    assert isinstance(lit.net[3], Block)
    assert isinstance(lit.net[2], Block)
    assert not any(module._forward_hooks or module._backward_hooks for module in lit.modules())


def test_after_a_rollback_the_block_is_trained_and_ranked_again(tmp_path: Path) -> None:
    script = [0.9, 0.9, 0.5, 0.9, 0.9, 0.9]
    lit, events = Judged(script), Events()
    schedule = Rounds(1, 2, 2)
    pruning = IterativePruning(schedule, Ratio(1.0), BlockInfluence(), Blocks())
    fit(tmp_path, lit, pruning, guard(retry=3), Checked(), events, max_epochs=6)
    assert [len(report.plan.removed_modules) for report in events.reports] == [2, 1, 1]
    assert [len(report.scores) for report in events.reports] == [4, 4, 3]
    assert len(gone(lit)) == 2


# --- with others


@pytest.mark.skipif(EMA is None, reason="this version of Lightning has no EMA")
@pytest.mark.parametrize("first", [True, False])
def test_blocks_are_removed_from_averages(tmp_path: Path, first: bool) -> None:
    lit, ema = LitResidual(), EMA(decay=0.5)
    fit(tmp_path, lit, *([ema, blocks()] if first else [blocks(), ema]), max_epochs=5)
    average = ema._average_model.module
    assert gone(average) == gone(lit) == ["net.2", "net.3", "net.4"]
    assert [name for name, _ in average.named_parameters()] == [name for name, _ in lit.named_parameters()]


def test_masks_release_the_removed_block(tmp_path: Path) -> None:
    """No hook on an optimizer keeps its parameters in memory."""

    class Kept(Callback):
        def on_prune(self, trainer: Trainer, pl_module: LightningModule, plan: Any, report: Any) -> None:
            own = {id(parameter) for parameter in pl_module.parameters()}
            kept.append([id(parameter) in own for parameter in masks._events.masks._enforcer._parameters])

    kept: list[list[bool]] = []
    masks = IterativePruning(Constant(1), Sparsity(0.5), granularity=Weights())
    fit(tmp_path, LitResidual(), masks, blocks(count=1, start=2), Kept(), max_epochs=3)
    assert kept == [[True] * 10, [True] * 8]  # two kernels of each block, the stem and the head


@pytest.mark.slow
@pytest.mark.parametrize("criterion", [Sensitivity(), BlockInfluence()], ids=repr)
def test_compiled_modules(tmp_path: Path, criterion: Any) -> None:
    torch._dynamo.reset()
    lit, plain = LitResidual(), LitResidual()
    options = {"max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1}
    fit(tmp_path, plain, blocks(criterion, 1), **options)
    fit(tmp_path, torch.compile(lit, backend="eager"), blocks(criterion, 1), **options)
    assert gone(lit) == gone(plain)
    assert len(gone(lit)) == 1
    for a, b in zip(lit.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_two_pruners_of_blocks_need_their_own(tmp_path: Path) -> None:
    callbacks = [
        blocks(scope=Scope(include=["net.1", "net.2"]), count=1),
        blocks(scope=Scope(include=["net.2"]), count=1),
    ]
    with pytest.raises(MisconfigurationException, match=r"both prune the block 'net\.2'; give them disjoint scopes"):
        fit(tmp_path, LitResidual(), *callbacks, max_epochs=2)
    lit = LitResidual()
    fit(tmp_path, lit, *(blocks(scope=Scope(include=[f"net.{n}"]), count=1) for n in (1, 3)), max_epochs=3)
    assert gone(lit) == ["net.1", "net.3"]


def test_together_with_reports_loggers_and_a_teacher(tmp_path: Path) -> None:
    lit, summary = LitResidual(), PruningSummary("val_loss")
    budget = Params(keep=0.4)
    pruning = IterativePruning(Rounds(1, 1, 2), budget, BlockInfluence(), Blocks())
    trainer = fit(tmp_path, lit, pruning, SparsityLogger("val_loss"), summary, Distillation(), max_epochs=4)
    left = sum(p.numel() for p in lit.parameters())
    assert left <= 0.4 * 1575
    assert [row.size.params for row in summary.rounds][::2] == [1575, left]
    assert float(trainer.callback_metrics["sparsity"]) == pytest.approx(1 - left / 1575)
    summary.conclude(trainer, lit)


def test_a_block_that_training_never_calls_is_named(tmp_path: Path) -> None:
    class Shortcut(LitResidual):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net[4:](self.net[0](batch[0])), batch[1])

    with pytest.raises(MisconfigurationException, match=r"BlockInfluence\(every_n_steps=1\) needs .* of 'net\.1'"):
        fit(tmp_path, Shortcut(), blocks(), max_epochs=2)


@pytest.mark.parametrize("optimizer", ["lbfgs"])
def test_optimizers_with_one_state_for_all_are_refused(tmp_path: Path, optimizer: str) -> None:
    class Flat(LitResidual):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(MisconfigurationException, match="from which blocks cannot be removed"):
        fit(tmp_path, Flat(), blocks(), max_epochs=2)


# --- two ranks

SCRIPT = """
import sys
from pathlib import Path

import torch
from helpers.training import BATCH, Events, fit, images
from lightning.pytorch.callbacks import Callback
from helpers.residual import LitResidual
from test_blocks import METHODS, Scored, blocks, gone
from torch.utils.data import DataLoader, DistributedSampler

from lightning_prune.criteria import Sensitivity

ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)


class Before(Callback):
    def __init__(self):
        self.weights = None

    def on_before_prune(self, trainer, pl_module, pruning):
        if self.weights is None:
            self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}


class Half(Scored):
    def loader(self, data):
        sampler = DistributedSampler(data, ranks, self.global_rank, shuffle=False)
        return DataLoader(data, BATCH // ranks, sampler=sampler)

    def train_dataloader(self):
        return self.loader(images())

    def val_dataloader(self):
        return self.loader(images(24, seed=1))


if __name__ == "__main__":
    for name in ("influence", "metric", "loss", "with_channels", "with_ema"):
        lit = Half()
        for norm in (module for module in lit.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.momentum = 0.0  # else every rank has statistics of its own, between two broadcasts of DDP
        monitored = Sensitivity(name, "min" if name == "loss" else "max", batches=3)
        callbacks = [blocks(monitored)] if name in ("metric", "loss") else METHODS[name]()
        strategy = "ddp" if ranks > 1 else "auto"
        before, events = Before(), Events()
        trainer = fit(folder, lit, *callbacks, before, events, max_epochs=5, strategy=strategy, devices=ranks,
                      use_distributed_sampler=False)
        scores = {name: float(score) for name, score in events.reports[0].scores.items()}
        result = {"weights": dict(lit.named_parameters()), "gone": gone(lit), "scores": scores}
        result["before"] = before.weights
        torch.save(result, folder / f"{name}_{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    names = ("influence", "metric", "loss", "with_channels", *(["with_ema"] if EMA is not None else []))
    for name, (first, second) in launch(tmp_path, 2, SCRIPT, names).items():
        assert same(first, second), name
        assert len(first["gone"]) == 3
        if name in ("metric", "loss"):
            expected = by_hand(first["before"], 3)
            for block, score in first["scores"].items():
                accuracy, loss = (expected[block[-1]][n] - expected[""][n] for n in (0, 1))
                assert score == pytest.approx(loss if name == "loss" else -accuracy, abs=2e-6), block
