"""The same callbacks in the Trainer and in the CLI of `pytorch_lightning`."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from helpers.training import BATCH, images, small_net, widths
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_prune import AccuracyGuard, IterativePruning, SlimmingPenalty, SparsityLogger, load_pruned
from lightning_prune import callbacks as ours
from lightning_prune.budgets import Ratio
from lightning_prune.callbacks import PruningSummary
from lightning_prune.schedules import Rounds


class Lit(pytorch_lightning.LightningModule):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = small_net(width)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)

    def train_dataloader(self) -> Any:
        return DataLoader(images(), batch_size=BATCH)

    def val_dataloader(self) -> Any:
        return DataLoader(images(24, seed=1), batch_size=BATCH)


def trainer_for(folder: Path, *callbacks: Any, **options: Any) -> pytorch_lightning.Trainer:
    return pytorch_lightning.Trainer(
        accelerator="cpu", devices=1, callbacks=list(callbacks), default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", ours.__all__)
def test_every_callback_is_one_of_both(name) -> None:
    assert issubclass(getattr(ours, name), pytorch_lightning.Callback)
    assert issubclass(getattr(ours, name), lightning.pytorch.Callback)


def test_a_whole_training(tmp_path, capsys) -> None:
    torch.manual_seed(0)
    lit = Lit()
    save = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_last=True)
    pruning = IterativePruning(Rounds(1, 1, 2), Ratio(0.5), "taylor")
    callbacks = [
        pruning, SlimmingPenalty(1e-4), AccuracyGuard("val_loss", 10.0, mode="min"), SparsityLogger(), PruningSummary(),
        save,
    ]  # fmt: skip
    trainer = trainer_for(tmp_path, *callbacks, max_epochs=4, logger=TensorBoardLogger(tmp_path))
    trainer.fit(lit)
    assert widths(lit.net) == [4, 4, 3]
    assert pruning.pruner.event == 2
    assert "epoch=2" in save.best_model_path or "epoch=3" in save.best_model_path  # best of the final size
    callbacks[4].conclude(trainer, lit)
    assert "not tested: there is no test_step or no test_dataloader" in capsys.readouterr().out
    resumed = Lit()
    again = IterativePruning(Rounds(1, 1, 2), Ratio(0.5), "taylor")
    trainer = trainer_for(tmp_path, again, max_epochs=5, logger=False)
    trainer.fit(resumed, ckpt_path=save.last_model_path)
    assert widths(resumed.net) == [4, 4, 3]
    assert widths(load_pruned(Lit, save.last_model_path).net) == [4, 4, 3]


def test_bad_settings_raise_the_errors_of_both() -> None:
    for package in (pytorch_lightning, lightning.pytorch):
        with pytest.raises(package.utilities.exceptions.MisconfigurationException):
            IterativePruning(Rounds(1, 1, 2), "half")


def test_a_cli(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train"])
    arguments = [
        "fit", "--trainer.max_epochs=3", "--trainer.accelerator=cpu", "--trainer.logger=false",
        "--trainer.enable_progress_bar=false", "--trainer.callbacks+=lightning_prune.IterativePruning",
        "--trainer.callbacks.schedule=Rounds", "--trainer.callbacks.schedule.start=1",
        "--trainer.callbacks.schedule.every=1", "--trainer.callbacks.schedule.count=1",
        "--trainer.callbacks.budget=Ratio", "--trainer.callbacks.budget.share=0.5",
    ]  # fmt: skip
    cli = LightningCLI(Lit, args=arguments, save_config_callback=None)
    assert widths(cli.model.net) == [4, 4, 3]


def test_pickled_callbacks_load_in_a_new_interpreter(tmp_path) -> None:
    path = tmp_path / "callback.pt"
    torch.save(IterativePruning(Rounds(1, 1, 2), Ratio(0.5)), path)
    code = f"import torch; print(type(torch.load({str(path)!r}, weights_only=False)).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["IterativePruning"], done.stderr


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_messages_are_logged_by_the_package_in_use(package) -> None:
    """A user who silences the logger of one package must not get messages from the other."""
    code = f"import {package}; import lightning_prune.callbacks; from lightning_utilities.core import rank_zero as r; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(r.log.name)"], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith(package), done.stderr
