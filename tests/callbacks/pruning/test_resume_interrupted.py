"""Resume after an interruption: exceptions, and events that are being applied or held back."""

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.resumable import EPOCHS, METHODS, STEPS, Everywhere, Noisy, Randomness, everything, train, without_metrics
from helpers.training import fit, same, trainer_for
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from torch import nn
from torch.nn import functional as F

from lightning_prune import AccuracyGuard, IterativePruning
from lightning_prune.budgets import Ratio
from lightning_prune.schedules import Constant, Rounds
from lightning_prune.surgery import apply


class FaultError(Exception): ...


class Fail(Callback):
    """Raises in a hook of an epoch; in hooks of batches, after batch 1."""

    def __init__(self, hook: str, epoch: int = 1) -> None:
        setattr(self, hook, self._fail)
        self.epoch = epoch

    def _fail(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.epoch and trainer.fit_loop.batch_idx >= 1:
            raise FaultError


SAVERS: dict[str, Callable[[Path], Callback]] = {"own": lambda folder: OnExceptionCheckpoint(folder, "fault")}
if "save_on_exception" in signature(ModelCheckpoint).parameters:
    SAVERS["model"] = lambda folder: ModelCheckpoint(folder, "fault", every_n_epochs=99, save_on_exception=True)


@pytest.mark.parametrize("saver", SAVERS)
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_start", "on_validation_end"])
@pytest.mark.parametrize("method", ["nothing", "taylor_in_steps", "both"])
def test_from_an_exception(tmp_path, method, hook, saver) -> None:
    callbacks = METHODS[method]()
    reference = everything(*train(tmp_path, callbacks), callbacks)
    with pytest.raises(FaultError):
        train(tmp_path, [*METHODS[method](), Fail(hook), SAVERS[saver](tmp_path)], enable_checkpointing=True)
    callbacks = METHODS[method]()
    found = everything(*train(tmp_path, callbacks, tmp_path / "fault.ckpt"), callbacks)
    assert same(without_metrics(found), without_metrics(reference))


@pytest.mark.parametrize("method", ["taylor", "both"])
def test_rollbacks(tmp_path, method) -> None:
    """The accepted network is in a file of the interrupted training."""
    make = lambda: [*METHODS[method](), AccuracyGuard("score", 0.05, on_drop="rollback", retry=1)]  # noqa: E731
    callbacks = make()
    reference = everything(*train(tmp_path, callbacks), callbacks)
    assert any(verdict["rolled_back"] for verdict in reference["callbacks"][-1]["verdicts"])
    for epoch in (1, 2, 3):
        folder = tmp_path / str(epoch)
        save = ModelCheckpoint(folder, save_last=True)
        with pytest.raises(FaultError):
            train(folder, [*make(), Fail("on_train_batch_end", epoch), save])
        callbacks = make()
        found = everything(*train(folder, callbacks, folder / "last.ckpt"), callbacks)
        assert same(found, reference), epoch


@pytest.mark.parametrize("method", METHODS)
def test_the_same_objects_continue_after_an_exception(tmp_path, method) -> None:
    """Also from a checkpoint of another size, with hooks of the interrupted training still registered."""
    callbacks = METHODS[method]()
    reference = everything(*train(tmp_path, callbacks), callbacks)
    callbacks, save = METHODS[method](), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    torch.manual_seed(0)
    lit = Noisy()
    with pytest.raises(FaultError):
        trainer_for(tmp_path, *callbacks, Randomness(), Fail("on_train_batch_end"), save, max_epochs=EPOCHS).fit(lit)
    trainer = trainer_for(tmp_path, *callbacks, Randomness(), save, max_epochs=EPOCHS)
    trainer.fit(lit, ckpt_path=str(tmp_path / "epoch=0.ckpt"))
    assert same(everything(lit, trainer, callbacks), reference)


def test_a_listener_saves_the_pruned_network(tmp_path) -> None:
    """Even if it precedes a pruner whose masks must be sliced: the shapes in the file agree."""
    everywhere = Everywhere(tmp_path / "files", ["on_prune"])
    train(tmp_path, [everywhere, *METHODS["both"]()])
    assert len(everywhere.files) == 5
    for file in everywhere.files:
        callbacks = METHODS["both"]()
        lit, _ = train(tmp_path, callbacks, file)
        parameters = dict(lit.named_parameters())
        assert all(mask.shape == parameters[name].shape for name, mask in callbacks[1].pruner.masks.items())
        assert all(not parameters[name][~mask].any() for name, mask in callbacks[1].pruner.masks.items())


class Halfway(Callback):
    """Raises when three tensors of the network have been sliced in an event; copies of it do not count."""

    def __init__(self, event: int) -> None:
        self.event, self.own, self.sliced = event, set[int](), 0
        self.slice = apply._slice_tensor

    def on_before_prune(self, trainer: Trainer, pl_module: LightningModule, pruning: IterativePruning) -> None:
        if pruning.pruner.event + 1 == self.event:
            self.own = {id(parameter) for parameter in pl_module.parameters()}

    def slice_tensor(self, tensor: torch.Tensor, *arguments: Any) -> None:
        self.sliced += id(tensor) in self.own
        if self.sliced > 3:
            raise FaultError
        self.slice(tensor, *arguments)


@pytest.mark.parametrize("saver", SAVERS)
def test_a_half_pruned_network_is_not_saved(tmp_path, monkeypatch, saver) -> None:
    """An error or Ctrl-C in the middle of surgery; the checkpoint before it remains valid."""
    reference_callbacks = METHODS["taylor"]()
    reference = everything(*train(tmp_path, reference_callbacks), reference_callbacks)
    halfway = Halfway(event=2)
    monkeypatch.setattr(apply, "_slice_tensor", halfway.slice_tensor)
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    with pytest.raises(RuntimeError, match="half pruned") as error:
        train(tmp_path, [*METHODS["taylor"](), halfway, save, SAVERS[saver](tmp_path)])
    assert isinstance(error.value.__context__, FaultError)
    assert sorted(file.name for file in tmp_path.glob("*.ckpt")) == ["epoch=0.ckpt", "epoch=1.ckpt"]
    monkeypatch.undo()
    callbacks = METHODS["taylor"]()
    assert same(everything(*train(tmp_path, callbacks, tmp_path / "epoch=1.ckpt"), callbacks), reference)


class Third(Callback):
    """Holds an event back twice."""

    def __init__(self) -> None:
        self.tries = 0

    def on_before_prune(self, trainer: Trainer, pl_module: LightningModule, pruning: IterativePruning) -> None:
        self.tries += 1
        if self.tries < 3:
            pruning.pause("not yet")

    def state_dict(self) -> dict[str, int]:
        return {"tries": self.tries}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.tries = state_dict["tries"]


def test_an_event_that_is_held_back_is_not_tried_sooner(tmp_path) -> None:
    make = lambda: [IterativePruning(Constant(0), Ratio(0.5)), Third()]  # noqa: E731
    callbacks, everywhere = make(), Everywhere(tmp_path / "files", ["on_train_batch_end"])
    reference = everything(*train(tmp_path, [*callbacks, everywhere]), callbacks)
    (event,) = reference["callbacks"][0]["history"]["events"]
    assert (event["epoch"], event["step"]) == (2, 2 * STEPS)
    for file in everywhere.files[: 2 * STEPS]:
        callbacks = make()
        found = everything(*train(tmp_path, callbacks, file), callbacks)
        assert same(without_metrics(found), without_metrics(reference)), file.stem


class Turns(Noisy):
    """Two heads that are trained alternately."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*list(self.net)[:-1])
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in range(2))

    def forward(self, images: torch.Tensor) -> Any:
        return [head(self.net(images)) for head in self.heads]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0])[batch_idx % 2], batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...


def test_alternating_layers_raise_no_error_after_a_resume(tmp_path) -> None:
    """The first batch of the resumed training is the last of its epoch, and comes right after an event."""
    make = lambda: IterativePruning(Rounds(STEPS - 1, 2 * STEPS, 2, "step"), Ratio(0.5), "taylor")  # noqa: E731
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path, Turns(), make(), save, max_epochs=EPOCHS)
    pruning = make()
    trainer = trainer_for(tmp_path, pruning, max_epochs=EPOCHS)
    trainer.fit(Turns(), ckpt_path=str(tmp_path / f"step={STEPS - 1}.ckpt"))
    assert pruning.pruner.event == 2
