"""An interrupted ``fit`` prints the command that resumes it."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_prune.callbacks.command_line.resume import how_to_resume
from lightning_prune.methods import method_named

TASK = '''
import signal
import time
from lightning.pytorch import Callback


signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background processes ignore it


class Slow(Callback):
    """Reports when an epoch starts, and leaves time to interrupt it."""

    def __init__(self, epoch: int = 2) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            print("epoch runs", flush=True)
            time.sleep(60)
'''
COMMAND = [sys.executable, "-m", "lightning_prune.cli"]


def configuration(path: Path, **trainer: Any) -> None:
    """A short quickstart that reports and waits in its third epoch."""
    content = yaml.safe_load(method_named("quickstart").path.read_text(encoding="utf-8"))
    content["model"]["init_args"]["model_args"] = {"width": 8}
    content["trainer"].update({"max_epochs": 4, "limit_train_batches": 3, "enable_progress_bar": False})
    content["trainer"]["callbacks"][0]["init_args"]["schedule"]["init_args"] = {"start": 1, "every": 1, "count": 2}
    content["trainer"]["callbacks"][1]["init_args"]["max_drop"] = 1.0
    content["trainer"]["callbacks"].append({"class_path": "my_callbacks.Slow"})
    content["trainer"].update(trainer)
    path.write_text(yaml.safe_dump(content))


def interrupted(folder: Path, *args: str) -> str:
    """The standard error of a ``fit`` that was interrupted in its third epoch."""
    (folder / "my_callbacks.py").write_text(TASK)
    command = [*COMMAND, "fit", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "epoch runs\n":
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    return errors


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *args = shlex.split(command)
    assert program == "lightning-prune"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=300, cwd=folder, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("logger", [True, False], ids=["logger", "no logger"])
def test_the_command_resumes_the_run(tmp_path: Path, logger: bool) -> None:
    configuration(tmp_path / "my run.yaml", **({} if logger else {"logger": False}))
    errors = interrupted(tmp_path, "--config", "my run.yaml")
    (command,) = re.findall(r"^To resume: (.+)$", errors, re.MULTILINE)
    path = command.split("--ckpt_path=")[1]
    assert command == f"lightning-prune fit --config 'my run.yaml' --ckpt_path={path}"
    assert torch.load(tmp_path / path, weights_only=True)["epoch"] == 1
    done = run(f"{command} --trainer.callbacks.epoch=9", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Restored all states from the checkpoint at {path}" in done.stderr
    assert "Pruning, round by round" in done.stdout
    newest = max(tmp_path.rglob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    assert torch.load(newest, weights_only=True)["epoch"] == 3


@pytest.mark.slow
def test_without_checkpoints_it_reports_how_to_get_them(tmp_path: Path) -> None:
    configuration(tmp_path / "c.yaml", enable_checkpointing=False, callbacks=[{"class_path": "my_callbacks.Slow"}])
    errors = interrupted(tmp_path, "--config", "c.yaml")
    assert errors.splitlines()[-1] == (
        "There is no checkpoint to resume from: add the callback ModelCheckpoint to the configuration."
    )


def stopped(*callbacks: Any) -> Any:
    return SimpleNamespace(checkpoint_callbacks=list(callbacks))


def test_before_the_first_checkpoint(tmp_path: Path) -> None:
    trainer = stopped(ModelCheckpoint(tmp_path))
    assert how_to_resume(trainer, ["fit", "--config", "c.yaml"]) == (
        "There is no checkpoint to resume from yet: ModelCheckpoint writes the first one after an epoch."
    )
    assert how_to_resume(trainer, ["fit", "--config", "c.yaml", "--ckpt_path", "a b.ckpt"]) == (
        "There is no newer checkpoint. To resume: lightning-prune fit --config c.yaml --ckpt_path 'a b.ckpt'"
    )


def test_the_newest_of_all_full_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    best, last = ModelCheckpoint(tmp_path, "best"), ModelCheckpoint(tmp_path, "last")
    weights = ModelCheckpoint(tmp_path, "weights", save_weights_only=True)
    for age, name in enumerate(("weights", "last", "best")):
        (tmp_path / f"{name}.ckpt").write_text("")
        os.utime(tmp_path / f"{name}.ckpt", (1000 - age, 1000 - age))
    best.best_model_path, last.last_model_path = str(tmp_path / "best.ckpt"), str(tmp_path / "last.ckpt")
    weights.best_model_path, last.best_model_path = str(tmp_path / "weights.ckpt"), str(tmp_path / "removed.ckpt")
    for args in (["--ckpt_path", "old.ckpt"], ["--ckpt_path=old.ckpt"], []):
        found = how_to_resume(stopped(best, weights, last), ["fit", *args, "--config", "c.yaml"])
        assert found == "To resume: lightning-prune fit --config c.yaml --ckpt_path=last.ckpt"
