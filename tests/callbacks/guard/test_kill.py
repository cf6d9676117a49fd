"""SIGKILL at points of the hook sequence, in the middle of surgery, of a rollback and of a file among them.

Everything runs in forks of this process, which has imported what they need: importing costs more than training.
"""

import os
import random
import signal
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.local import LocalFileOpener
from helpers.resumable import METHODS, everything, train
from helpers.training import same
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_prune import AccuracyGuard, IterativePruning
from lightning_prune.callbacks.guard import rollback_checkpoint
from lightning_prune.surgery import apply

POINTS = 20
HOOKS = [name for name in dir(Callback) if name.startswith("on_")] + ["on_prune", "on_rollback"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system"),
]


def make() -> list[Callback]:
    return [*METHODS["both"](), AccuracyGuard("score", 0.05, on_drop="rollback", retry=1)]


class Crossings(Callback):
    """Counts points of the training, and kills the process at one of them."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.names: list[str] = []
        self.kill_at = kill_at
        self._own: set[int] = set()
        self._slice, self._write = apply._slice_tensor, LocalFileOpener.write
        self._load_optimizers = rollback_checkpoint._load_optimizers
        for hook in HOOKS:
            setattr(self, hook, partial(self.cross, hook))

    def cross(self, name: str, *_: Any, **__: Any) -> None:
        if len(self.names) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(name)

    def on_before_prune(self, trainer: Trainer, pl_module: LightningModule, pruning: IterativePruning) -> None:
        self.cross("on_before_prune")
        self._own = {id(parameter) for parameter in pl_module.parameters()}

    def slice_tensor(self, tensor: torch.Tensor, *arguments: Any) -> None:
        """Some tensors of the network are sliced, this one is not."""
        if id(tensor) in self._own:
            self.cross("surgery")
        self._slice(tensor, *arguments)

    def write(self, file: LocalFileOpener, data: bytes) -> None:
        half = len(data) // 2
        self._write(file, data[:half])
        file.f.flush()
        self.cross("write accepted" if "accepted-" in file.path else "write")
        self._write(file, data[half:])

    def load_optimizers(self, *arguments: Any) -> None:
        """The accepted network is restored, its optimizer state is not."""
        self.cross("rollback")
        self._load_optimizers(*arguments)


def run(folder: Path, kill_at: int | None) -> dict[str, Any]:
    """A training from its beginning, with a checkpoint after every epoch."""
    crossings = Crossings(kill_at)
    apply._slice_tensor = crossings.slice_tensor
    LocalFileOpener.write = lambda file, data: crossings.write(file, data)
    rollback_checkpoint._load_optimizers = crossings.load_optimizers
    callbacks = make()
    save = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_last=True)
    end = everything(*train(folder, [*callbacks, crossings, save]), callbacks)
    return {"end": end, "names": crossings.names}


def resume(folder: Path, ckpt_path: str = "last") -> dict[str, Any]:
    """The resumed training; from the beginning if there is no checkpoint yet."""
    callbacks = make()
    save = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_last=True)
    begun = (folder / "last.ckpt").exists()
    return everything(*train(folder, [*callbacks, save], ckpt_path if begun else None), callbacks)


def in_fork(task: Callable[[], Any], answer: Path) -> Any:
    """Result of ``task`` in a child process; None if that was killed."""
    child = os.fork()
    if child == 0:
        try:
            torch.save(task(), answer)
        except BaseException:
            answer.write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert status == 0, answer.read_text()
    return torch.load(answer, weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The uninterrupted training: its final state, and its points."""
    folder = tmp_path_factory.mktemp("whole")
    return in_fork(lambda: run(folder, None), folder / "answer")


def points(names: list[str]) -> list[int]:
    """In the middle of surgery, a rollback and both kinds of files, around an event, the last of all, and others."""
    draw = random.Random(0)
    counts = {"surgery": 3, "write": 2, "write accepted": 2, "rollback": 1, "on_rollback": 1}
    counts |= {"on_before_prune": 1, "on_prune": 1, "on_save_checkpoint": 1}
    chosen = [len(names) - 1]
    for name, count in counts.items():
        chosen += draw.sample([point for point, found in enumerate(names) if found == name], count)
    others = [point for point in range(len(names)) if point not in chosen]
    return [*chosen, *draw.sample(others, POINTS - len(chosen))]


@pytest.mark.parametrize("number", range(POINTS))
def test_a_killed_training_ends_bit_identical_when_resumed(tmp_path, monkeypatch, whole, number) -> None:
    point = points(whole["names"])[number]
    (tmp_path / "unfinished").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "unfinished"))  # Lightning writes there, and renames
    assert in_fork(lambda: run(tmp_path, point), tmp_path / "answer") is None
    halves = [file for file in (tmp_path / "unfinished").iterdir() if file.stat().st_size]
    assert bool(halves) == whole["names"][point].startswith("write")
    found = in_fork(lambda: resume(tmp_path), tmp_path / "answer")
    assert not list(tmp_path.glob("accepted-*"))
    for part, expected in whole["end"].items():
        assert same(found[part], expected), f"{part} after a kill at {whole['names'][point]}, point {point}"


def test_there_are_many_points(whole) -> None:
    names = whole["names"]
    chosen = [names[point] for point in points(names)]
    assert len(chosen) == POINTS
    assert chosen.count("surgery") >= 2 <= chosen.count("write")
    assert chosen.count("write accepted") == 2
    assert chosen.count("rollback") == 1
    assert len(set(chosen)) >= 8
    assert {"on_prune", "on_save_checkpoint", "on_validation_end", "on_train_end"} <= set(names)
    assert len(whole["end"]["callbacks"][0]["history"]["events"]) == 2
    assert [verdict["rolled_back"] for verdict in whole["end"]["callbacks"][2]["verdicts"]] == [
        False,
        True,
        False,
        False,
    ]


def test_a_partial_file_is_not_used(tmp_path, whole) -> None:
    """As after an interrupted move between file systems."""
    third = [point for point, name in enumerate(whole["names"]) if name == "on_train_epoch_end"][2]
    assert in_fork(lambda: run(tmp_path, third), tmp_path / "answer") is None
    content = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(AssertionError, match="load_checkpoint"):
        in_fork(lambda: resume(tmp_path), tmp_path / "answer")
    newest = max(tmp_path.glob("epoch=*.ckpt"), key=lambda file: file.stat().st_mtime)
    found = in_fork(lambda: resume(tmp_path, str(newest)), tmp_path / "answer")
    assert same(found, whole["end"])
