"""Resume from any checkpoint: pruned runs are as bit-identical as the unpruned control."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.resumable import (
    EPOCHS,
    METHODS,
    STEPS,
    Everywhere,
    Measured,
    Noisy,
    everything,
    place,
    train,
    without_metrics,
)
from helpers.training import same, trainer_for
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

PRUNED = [method for method in METHODS if method != "nothing"]

# Here Lightning goes on exactly. Elsewhere in a batch it repeats or skips one, at a later epoch's start all of it.
EXACT = [
    "on_train_start",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_end",
]
INEXACT = [
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
]
EVENT = ["on_before_prune", "on_prune"]


def validation_follows(file: Path, interval: float) -> bool:
    """Whether Lightning skips, fully or partly, a validation that was due or running here."""
    hook, _, batch = place(file)
    if hook == "on_train_batch_end":
        return (batch + 1) % int(STEPS * interval) == 0
    return hook.startswith("on_validation") and hook != "on_validation_end"


def chosen(files: list[Path], thorough: bool) -> Iterator[Path]:
    """In a quick test, some in the epoch after the first event, and one while the guard holds an event back."""
    some = [("on_train_batch_end", 1, 1), ("on_train_batch_end", 2, 1), ("on_train_batch_end", 1, STEPS - 1)]
    some += [(hook, 1, STEPS - 1) for hook in ("on_validation_start", "on_validation_end", "on_train_epoch_end")]
    for file in files:
        if thorough or place(file) in some:
            yield file


THOROUGH = [pytest.param(False, id="quick"), pytest.param(True, id="thorough", marks=pytest.mark.slow)]
CASES = [  # thorough or not, val_check_interval
    pytest.param(False, 1.0, id="quick"),
    pytest.param(True, 1.0, id="thorough", marks=pytest.mark.slow),
    pytest.param(True, 0.5, id="twice_an_epoch", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("thorough", "interval"), CASES)
def test_lightning_alone_resumes_exactly(tmp_path, thorough, interval) -> None:
    """Control. Only the metrics of a validation that was due or running are lost."""
    everywhere, measured = Everywhere(tmp_path / "files", EXACT), Measured()
    run = train(tmp_path, [measured, everywhere], val_check_interval=interval)
    reference, metrics = everything(*run, []), measured.values
    files = list(chosen(everywhere.files, thorough))
    assert {place(file)[0] for file in files} >= {"on_train_batch_end", "on_validation_start", "on_train_epoch_end"}
    for file in files:
        found = Measured()
        assert same(everything(*train(tmp_path, [found], file, val_check_interval=interval), []), reference), file.stem
        assert same(found.values, metrics) != validation_follows(file, interval), file.stem


@pytest.mark.parametrize(("thorough", "interval"), CASES)
@pytest.mark.parametrize("method", PRUNED)
def test_a_resumed_run_ends_bit_identical(tmp_path, method, thorough, interval) -> None:
    callbacks, everywhere = METHODS[method](), Everywhere(tmp_path / "files", EXACT)
    reference = everything(*train(tmp_path, [*callbacks, everywhere], val_check_interval=interval), callbacks)
    assert reference["callbacks"][0]["history"]["events"]
    compared = 0
    for file in chosen(everywhere.files, thorough):
        lost = validation_follows(file, interval)
        if lost and method == "guard":  # it has nothing to judge by
            continue
        callbacks, compared = METHODS[method](), compared + 1
        found = everything(*train(tmp_path, callbacks, file, val_check_interval=interval), callbacks)
        for part, expected in (without_metrics(reference) if lost else reference).items():
            assert same((without_metrics(found) if lost else found)[part], expected), f"{part}, {file.stem}"
    assert compared >= 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nothing", "taylor", "taylor_in_steps", "both"])
def test_between_accumulation_windows(tmp_path, method) -> None:
    """Lightning saves no gradients, so inside a window no run is resumed exactly."""
    options = {"accumulate_grad_batches": 2}
    callbacks, everywhere = METHODS[method](), Everywhere(tmp_path / "files", ["on_train_batch_end"])
    reference = everything(*train(tmp_path, [*callbacks, everywhere], **options), callbacks)
    for file in everywhere.files:
        _, _, batch = place(file)
        callbacks = METHODS[method]()
        found = everything(*train(tmp_path, callbacks, file, **options), callbacks)
        assert same(without_metrics(found), without_metrics(reference)) == (batch % 2 == 1), file.stem


class Look(Callback):
    """Records the initial state of a training, and ends it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.found = {
            "weights": {name: value.clone() for name, value in pl_module.state_dict().items()},
            "optimizer": trainer.optimizers[0].state_dict(),
            "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            **{callback.state_key: callback.state_dict() for callback in trainer.callbacks},
        }
        trainer.should_stop = True


@pytest.mark.parametrize("thorough", THOROUGH)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_is_what_is_loaded(tmp_path, method, thorough) -> None:
    """At any hook, also where Lightning then repeats or skips batches."""
    everywhere = Everywhere(tmp_path / "files", EXACT + INEXACT + EVENT)
    train(tmp_path, [everywhere, *METHODS[method]()])
    files = everywhere.files[:-1]  # the last one, of the last epoch's end, leaves nothing to train
    for file in files if thorough else files[::13] + [file for file in files if place(file)[0] == "on_prune"]:
        saved = torch.load(file, weights_only=True)
        callbacks, look = METHODS[method](), Look()
        train(tmp_path, [*callbacks, look], file)
        found = look.found
        assert same(found["weights"], dict(saved["state_dict"])), file.stem
        assert same(found["optimizer"], saved["optimizer_states"][0]), file.stem
        assert same(found["scheduler"], saved["lr_schedulers"][0]), file.stem
        for callback in callbacks:
            assert same(found[callback.state_key], saved["callbacks"][callback.state_key]), file.stem


@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method in PRUNED if method != "guard"])
def test_from_any_hook_the_schedule_completes(tmp_path, method) -> None:
    everywhere = Everywhere(tmp_path / "files", INEXACT + EVENT)
    train(tmp_path, [*METHODS[method](), everywhere])
    for file in everywhere.files[::3]:
        hook, epoch, _ = place(file)
        if hook in EVENT and epoch >= EPOCHS - 2:  # Lightning leaves out this epoch: too few steps follow
            continue
        callbacks = METHODS[method]()
        train(tmp_path, callbacks, file)
        assert all(pruning.pruner.fraction == 1.0 and pruning._events.finished for pruning in callbacks), file.stem


@pytest.mark.parametrize("method", ["nothing", "both", "guard"])
def test_from_the_last_file(tmp_path, method) -> None:
    """``save_last`` and ``ckpt_path="last"``, in a training that ended early."""
    callbacks = METHODS[method]()
    reference = everything(*train(tmp_path, callbacks), callbacks)
    save = ModelCheckpoint(tmp_path, save_last=True)
    train(tmp_path, [*METHODS[method](), save], max_epochs=2)
    callbacks, save = METHODS[method](), ModelCheckpoint(tmp_path, save_last=True)
    assert same(everything(*train(tmp_path, [*callbacks, save], "last"), callbacks), reference)
    assert save.last_model_path == str(tmp_path / "last.ckpt")


@pytest.mark.parametrize("method", METHODS)
def test_validate_and_test_take_checkpoints_of_weights_alone(tmp_path, method) -> None:
    """Forwards and backwards in size, into the trained network and into a new one."""
    measured = Measured()
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_weights_only=True)
    lit, trainer = train(tmp_path, [*METHODS[method](), measured, save])
    fresh = Noisy()
    for epoch in (3, 0, 2, 1, 3):
        file = str(tmp_path / f"epoch={epoch}.ckpt")
        assert "callbacks" not in torch.load(file, weights_only=True)
        another = trainer_for(tmp_path, *METHODS[method]())
        for stage, module in ((trainer.validate, lit), (trainer.test, lit), (another.test, fresh)):
            (found,) = stage(module, ckpt_path=file, verbose=False)
            assert found["val_loss"] == measured.values[epoch][1]
