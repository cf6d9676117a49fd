"""AccuracyGuard with on_drop='rollback' after an interruption, from any checkpoint of the training."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import resumable
from helpers.judged import Interrupt, PowerFailureError, Sized, guard, run
from helpers.resumable import STEPS, Everywhere, everything, place, train
from helpers.scripted import loader
from helpers.training import same, trainer_for
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_prune import IterativePruning, Weights
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.schedules import Rounds

EPOCHS = 6
PER_EPOCH = [0.9, 0.9, 0.5, 0.9, 0.9, 0.5]  # the first drop costs a round, or the rest; the second comes at the end
METHODS: dict[str, Callable[[], IterativePruning]] = {
    "channels": lambda: IterativePruning(Rounds(1, 1, 3), Ratio(0.5), "taylor"),
    "weights": lambda: IterativePruning(Rounds(1, 1, 3), Sparsity(0.8), granularity=Weights()),
}


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable, "SCORES", [score for score in PER_EPOCH for _ in range(2)])


@pytest.mark.usefixtures("scores")
@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("retry", [0, 1])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_bit_identical(tmp_path: Path, method: str, retry: int, thorough: bool) -> None:
    """From every checkpoint of a training that was interrupted just before its end."""
    make = lambda: [METHODS[method](), guard(retry)]  # noqa: E731
    callbacks = make()
    whole = everything(*train(tmp_path / "whole", callbacks, max_epochs=EPOCHS), callbacks)
    rolled_back = [verdict["rolled_back"] for verdict in whole["callbacks"][1]["verdicts"]]
    assert rolled_back == ([False, False, True] if retry == 0 else [False, False, True, False, False, True])
    hooks = ["on_train_batch_end"] * thorough + ["on_validation_end", "on_train_epoch_end"]
    everywhere, folder = Everywhere(tmp_path / "files", hooks), tmp_path / "part"
    with pytest.raises(PowerFailureError):
        train(folder, [Interrupt("on_train_end"), *make(), everywhere], max_epochs=EPOCHS)
    (left,) = folder.glob("accepted-*")
    assert len(list(left.iterdir())) == (2 if retry == 0 else 4)
    shutil.copytree(left, tmp_path / "kept")
    for file in everywhere.files if thorough else everywhere.files[1::2]:
        hook, epoch, batch = place(file)
        if hook == "on_train_batch_end" and batch == STEPS - 1:  # Lightning leaves out the validation that was due
            continue
        if epoch == EPOCHS - 1 and hook != "on_train_batch_end":  # nothing is left to train, see below
            continue
        shutil.copytree(tmp_path / "kept", left, dirs_exist_ok=True)
        callbacks = make()
        found = everything(*train(folder, callbacks, file, max_epochs=EPOCHS), callbacks)
        for part, expected in whole.items():
            assert same(found[part], expected), f"{part} after a resume from {file.stem}"
        assert not list(folder.glob("accepted-*")), file.stem


@pytest.mark.usefixtures("scores")
@pytest.mark.parametrize(
    "method",
    ["channels", "weights"],
)
def test_the_last_verdict_is_applied_after_the_last_epoch(tmp_path: Path, method: str) -> None:
    make = lambda: [METHODS[method](), guard(1)]  # noqa: E731
    callbacks = make()
    whole = everything(*train(tmp_path / "whole", callbacks, max_epochs=EPOCHS), callbacks)
    save = ModelCheckpoint(tmp_path, save_last=True)
    with pytest.raises(PowerFailureError):
        train(tmp_path, [Interrupt("on_train_end"), *make(), save], max_epochs=EPOCHS)
    callbacks = make()
    assert same(everything(*train(tmp_path, callbacks, tmp_path / "last.ckpt", max_epochs=EPOCHS), callbacks), whole)
    assert not list(tmp_path.glob("accepted-*"))


@pytest.mark.usefixtures("scores")
def test_a_training_interrupted_several_times_leaves_no_files(tmp_path: Path) -> None:
    """The first checkpoint is older than the first file; all trainings add to the same folder."""
    make = lambda: [METHODS["channels"](), guard(1)]  # noqa: E731
    callbacks = make()
    whole = everything(*train(tmp_path / "whole", callbacks, max_epochs=EPOCHS), callbacks)
    folder = tmp_path / "part"
    for attempt, (start, epoch) in enumerate([(None, 2), (0, 3), (2, 5), (0, 5)]):
        save, path = ModelCheckpoint(folder, "{epoch}", save_top_k=-1), folder / f"epoch={start}.ckpt"
        with pytest.raises(PowerFailureError):
            train(
                folder,
                [Interrupt("on_train_batch_start", epoch), *make(), save],
                None if start is None else path,
                max_epochs=EPOCHS,
            )
        (left,) = folder.glob("accepted-*")
        assert len(list(left.iterdir())) == [2, 4, 6, 10][attempt]
    callbacks = make()
    found = everything(*train(folder, callbacks, folder / "epoch=1.ckpt", max_epochs=EPOCHS), callbacks)
    assert same(found, whole)
    assert not list(folder.glob("accepted-*"))


def test_an_accepted_file_is_a_checkpoint_to_resume_from(tmp_path: Path) -> None:
    """After a drop its network is restored. Lightning skips the epoch at whose start it was written."""
    pruning = lambda: IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20))  # noqa: E731
    with pytest.raises(PowerFailureError):
        run(tmp_path, Sized(0), Interrupt("on_train_batch_start", 2), pruning(), guard(), epochs=9)
    files = sorted(tmp_path.glob("accepted-*/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 2
    module = Sized(16)
    trainer_for(tmp_path, pruning(), guard(), max_epochs=9).fit(module, loader(), loader(), ckpt_path=str(files[1]))
    assert module.tried == [8]
    assert module.width == 16


@pytest.mark.parametrize("score", [1.0, 0.0])
def test_a_checkpoint_that_a_listener_saves_is_judged_again(tmp_path: Path, score: float) -> None:
    """Whether the verdict accepts the network or rolls it back: neither has been done yet."""

    class Save(Callback):
        def on_verdict(self, trainer: Trainer, verdict: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{len(judge.verdicts)}.ckpt")

    pruning = lambda: IterativePruning(Rounds(1, 1, 2), Ratio(8 / 20))  # noqa: E731
    judge, script = guard(), [1.0, score, 0.0]
    with pytest.raises(PowerFailureError):
        run(tmp_path, Sized(0, script), Interrupt("on_train_end"), pruning(), judge, Save(), epochs=5)
    module, again = Sized(0, [0.0, 0.0]), guard()
    path = str(tmp_path / "1.ckpt")
    trainer_for(tmp_path, pruning(), again, max_epochs=5).fit(module, loader(), loader(), ckpt_path=path)
    assert [verdict.rolled_back for verdict in again.verdicts] == ([False, False, True] if score else [False, True])
    assert again.verdicts[:2] == judge.verdicts[:2]
    assert module.width == (16 if score else 20)


class Halving(TorchCheckpointIO):
    """Fails in the middle of a file while it is ``broken``."""

    broken: Any

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        if self.broken():
            Path(path).write_bytes(b"PK")
            raise PowerFailureError
        super().save_checkpoint(checkpoint, path, storage_options)


@pytest.mark.parametrize("hook", ["write", "restore"])
def test_an_interrupted_write_or_rollback_leaves_no_wrong_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    """It neither refers to an incomplete file nor holds a partly restored network."""
    pruning = lambda: IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20))  # noqa: E731
    judge = guard()
    halving = Halving()
    halving.broken = lambda: hook == "write" and bool(judge.verdicts[1:])
    trainer = trainer_for(tmp_path, pruning(), judge, max_epochs=9, plugins=[halving])

    def fail(*_: Any) -> None:
        raise PowerFailureError

    with monkeypatch.context() as patch:
        if hook == "restore":
            patch.setattr("lightning_prune.callbacks.guard.rollback_checkpoint._load_optimizers", fail)
        with pytest.raises(PowerFailureError):
            trainer.fit(Sized(16), loader(), loader())
    if hook == "restore":
        with pytest.raises(RuntimeError, match="in the middle of a rollback, which leaves the network half restored"):
            trainer.save_checkpoint(tmp_path / "last.ckpt")
        return
    halving.broken = lambda: False
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert len(list(tmp_path.glob("accepted-*/*.ckpt"))) == 2
    module = Sized(16)
    trainer = trainer_for(tmp_path, pruning(), guard(), max_epochs=9)
    trainer.fit(module, loader(), loader(), ckpt_path=str(tmp_path / "last.ckpt"))
    assert module.width == 16
