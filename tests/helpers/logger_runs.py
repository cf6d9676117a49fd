"""A small training, and what its logger wrote."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import Channels, IterativePruning, Scope, Weights
from lightning_prune.budgets import Budget, Ratio, Sparsity
from lightning_prune.network.example_input import Example
from lightning_prune.network.size import measure
from lightning_prune.schedules import Rounds, Schedule

BATCHES = 3  # an epoch
FIGURE = "pruning/metric_against_size"


class Unvalidated(pl.LightningModule):
    def __init__(self, width: int = 8, declared: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, bias=False),
            nn.ReLU(),
            nn.Conv2d(width, width, 3),
            nn.Flatten(),
            nn.Linear(16 * width, 2),
        )
        if declared:
            self.example_input_array = torch.zeros(2, 1, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        return _loader(BATCHES)


class Classifier(Unvalidated):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def val_dataloader(self) -> Any:
        return _loader(1)


def _loader(batches: int) -> DataLoader:
    images = torch.randn(4 * batches, 1, 8, 8, generator=torch.Generator().manual_seed(batches))
    return DataLoader(TensorDataset(images, (images.sum((1, 2, 3)) > 0).long()), batch_size=4)


def trainer_of(folder: Path, *callbacks: Any, epochs: int = 5, logger: Any = None, **kwargs: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=TensorBoardLogger(folder, name="", version="run") if logger is None else logger,
        accelerator="cpu",
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **kwargs,
    )


def channels(
    schedule: Schedule | None = None, budget: Budget | None = None, scope: Scope | None = None
) -> IterativePruning:
    return IterativePruning(
        schedule or Rounds(start=1, every=2, count=2), budget or Ratio(0.5), granularity=Channels(), scope=scope
    )


def masks(scope: Scope | None = None) -> IterativePruning:
    return IterativePruning(Rounds(start=1, every=2, count=2), Sparsity(0.75), granularity=Weights(), scope=scope)


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


class Witness(pl.Callback):
    """Measures the network where the logger should: at the start, after every event, at every epoch's end."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[int, int, int]] = {}
        self.scores: dict[int, dict[str, int]] = {}

    def note(self, step: int, model: nn.Module) -> None:
        size = measure(model, Example.of(torch.zeros(2, 1, 8, 8)))
        self.seen[step] = (size.params, size.nonzero, size.macs)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.note(trainer.global_step, pl_module)

    def on_prune(self, trainer: Any, pl_module: Any, plan: Any, report: Any) -> None:
        self.note(trainer.global_step, pl_module)
        self.scores[trainer.global_step] = {name: len(values) for name, values in report.scores.items()}

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.note(trainer.global_step - 1, pl_module)
