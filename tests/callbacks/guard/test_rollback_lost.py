"""AccuracyGuard with on_drop='rollback' where the file of the accepted network is gone, or lies elsewhere."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.judged import Interrupt, PowerFailureError, Sized, guard, run
from helpers.scripted import loader
from helpers.training import same, trainer_for
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_prune import AccuracyGuard, IterativePruning
from lightning_prune.budgets import Ratio
from lightning_prune.schedules import Rounds


def units() -> IterativePruning:
    """Twenty units, four less in every event, one event in every epoch."""
    return IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20))


def interrupted(folder: Path, script: list[float], epoch: int, **options: Any) -> Path:
    """A training until this epoch begins; returns its last checkpoint, without the file that it names."""
    save = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    with pytest.raises(PowerFailureError):
        run(folder, Sized(0, script), Interrupt("on_train_epoch_start", epoch), units(), guard(), save, **options)
    (left,) = folder.glob("accepted-*")
    shutil.rmtree(left)
    return folder / f"epoch={epoch - 1}.ckpt"


def resumed(
    folder: Path, path: Path | str, script: list[float], *others: Callback, **options: Any
) -> tuple[Sized, AccuracyGuard]:
    module, judge = Sized(0, script), guard()
    trainer = trainer_for(folder, *others, units(), judge, max_epochs=9, **options)
    trainer.fit(module, loader(), loader(), ckpt_path=str(path))
    assert not list(folder.glob("accepted-*"))
    return module, judge


class BegunError(Exception): ...


class Start(Callback):
    """Ends the training once it has begun."""

    def on_train_batch_start(self, *_: Any) -> None:
        raise BegunError


SAYS = (
    r"the accepted network of epoch {} is not at '{}/accepted-\w+/\w+\.ckpt': the training that wrote it has ended and "
    "removed it, or the file was not copied to this machine. "
)


@pytest.mark.parametrize("kept", [True, False])
def test_an_unjudged_network_takes_the_place_if_it_is_accepted(tmp_path: Path, kept: bool) -> None:
    """Sixteen units, validated and not judged: the network of twenty that was accepted is gone."""
    path = interrupted(tmp_path, [1.0, float(kept)], 2, epochs=9)
    says = SAYS.format(0, tmp_path) + "The resumed network has not been validated since its last event"
    with pytest.warns(UserWarning, match=says), pytest.raises(BegunError):
        resumed(tmp_path, path, [], Start())  # before anything is trained
    with pytest.warns(UserWarning, match=says) as caught:
        module, judge = resumed(tmp_path, path, [0.0])
    unrestored = [
        str(warning.message) for warning in caught if "It cannot be restored: the current" in str(warning.message)
    ]
    assert len(unrestored) == (not kept)
    assert [verdict.rolled_back for verdict in judge.verdicts] == ([False, False, True] if kept else [False, False])
    assert module.validated == ([12] if kept else [])
    assert module.width == 16


def test_an_accepted_network_takes_the_place_at_once(tmp_path: Path) -> None:
    """After a drop twenty units have come back, and are trained up to min_epochs."""
    path = interrupted(tmp_path, [1, 0, 1, 0], 4, epochs=9, min_epochs=5)
    says = SAYS.format(2, tmp_path) + "The resumed network replaces it: a rollback restores that one."
    with pytest.warns(UserWarning, match=says):
        module, judge = resumed(tmp_path, path, [0.0], min_epochs=5)
    assert [verdict.rolled_back for verdict in judge.verdicts] == [False, True, False, True, True]
    assert module.validated == [20]
    assert same(dict(module.state_dict()), torch.load(path, weights_only=True)["state_dict"])


def test_where_no_validation_tells_the_network_that_was_resumed_comes_back(tmp_path: Path) -> None:
    """Sixteen units that no validation has followed, the file gone, and another event: after a drop they are back."""
    path = interrupted(tmp_path, [1.0, 0.0], 2, epochs=9)
    state = torch.load(path, weights_only=True)
    (key,) = [key for key in state["callbacks"] if key.startswith("AccuracyGuard")]
    state["callbacks"][key]["pending"] = None
    torch.save(state, path)
    module, judge = resumed(tmp_path, path, [0.0])
    assert [verdict.rolled_back for verdict in judge.verdicts] == [False, True]
    assert module.tried == [12]
    assert module.width == 16


def test_the_folder_is_made_beside_the_logs_of_this_machine(tmp_path: Path) -> None:
    """A checkpoint from elsewhere names a folder that cannot be made here."""
    path = interrupted(tmp_path / "there", [1.0, 1.0], 2, epochs=9)
    shutil.move(tmp_path / "there", tmp_path / "here")
    module, _ = resumed(tmp_path / "here", tmp_path / "here" / path.name, [0.0])
    assert module.width == 16
    assert not (tmp_path / "there").exists()


def test_a_checkpoint_without_a_folder_is_resumed(tmp_path: Path) -> None:
    """As older versions wrote it, with one file beside the logs; that one is removed too."""
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    with pytest.raises(PowerFailureError):
        run(tmp_path, Sized(0, [1.0, 1.0]), Interrupt("on_train_epoch_start", 2), units(), guard(), save, epochs=9)
    state = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    (key,) = [key for key in state["callbacks"] if key.startswith("AccuracyGuard")]
    (file,) = tmp_path.glob("accepted-*/*.ckpt")
    old = file.rename(tmp_path / "accepted-0123456789ab.ckpt")
    file.parent.rmdir()
    del state["callbacks"][key]["folder"]
    state["callbacks"][key]["snapshot"]["path"] = str(old)
    for pending in (0.0, 1.0):
        kept = old.read_bytes()
        state["callbacks"][key]["pending"] = (1, pending)
        torch.save(state, tmp_path / "old.ckpt")
        module, _ = resumed(tmp_path, tmp_path / "old.ckpt", [0.0])
        assert module.width == (16 if pending else 20)
        old.write_bytes(kept)


def test_no_folder_without_a_rollback(tmp_path: Path) -> None:
    class Look(Callback):
        def on_train_end(self, *_: Any) -> None:
            assert not list(tmp_path.glob("accepted-*"))

    judge = AccuracyGuard("score", 0.1)
    run(tmp_path, Sized(16), Look(), units(), judge, epochs=5)
    assert judge.state_dict()["folder"] is None


@pytest.mark.parametrize("min_epochs", [None, 6])
def test_a_training_that_is_over_stays_over_after_a_resume(tmp_path: Path, min_epochs: int | None) -> None:
    """From the checkpoint that was saved after the last rollback."""
    save = ModelCheckpoint(tmp_path / "ck", save_last=True)
    run(tmp_path, Sized(16), units(), guard(), save, epochs=9)
    module, _ = resumed(tmp_path, save.last_model_path, [], min_epochs=min_epochs)
    assert set(module.validated) == (set() if min_epochs is None else {16})
    assert module.width == 16
