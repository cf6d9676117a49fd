"""A module whose validation metric is scripted, one value a validation: every judgement of it is exact."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import IterativePruning
from lightning_prune.budgets import Count
from lightning_prune.schedules import Rounds, Schedule

BATCHES = 4
WIDTH = 12


class Scripted(pl.LightningModule):
    """Logs ``script[n]`` as `score` in its n-th validation, and writes down what happens in which order."""

    def __init__(self, script: list[float] | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))
        self.script = script or []
        self.validations = 0
        self.history: list[str] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    @property
    def width(self) -> int:
        return self.net[0].out_features

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.history.append(f"train {self.width}")
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            self.log("score", 0.123)  # must not count
            return
        self.log("score", self.script[min(self.validations, len(self.script) - 1)])
        self.validations += 1
        self.history.append(f"val {self.width}")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("width", float(self.width))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2 * BATCHES, 4, generator=generator), torch.tensor([0, 1] * BATCHES)
    return DataLoader(TensorDataset(x, y), batch_size=2)


def pruning(schedule: Schedule | None = None) -> IterativePruning:
    """One hidden unit less in every event; by default at the start of epochs 2, 4 and 6."""
    return IterativePruning(schedule or Rounds(start=2, every=2, count=3), Count(1))
