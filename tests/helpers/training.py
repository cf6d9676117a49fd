"""Small networks, data and callbacks for tests that run a Trainer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

STEPS = 4  # training batches an epoch
BATCH = 8


def small_net(width: int = 8, norm: bool = True) -> nn.Sequential:
    """Two convolutions and a classifier of three classes."""
    norms = [nn.BatchNorm2d(width), nn.BatchNorm2d(width)] if norm else [nn.Identity(), nn.Identity()]
    return nn.Sequential(
        nn.Conv2d(2, width, 3, padding=1),
        norms[0],
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        norms[1],
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


def images(count: int = STEPS * BATCH, seed: int = 0) -> TensorDataset:
    """Images whose class is the brightest of three rows."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = torch.randn(count, 2, 3, 4, generator=generator), torch.arange(count) % 3
    inputs[torch.arange(count), :, labels] += 1.0
    return TensorDataset(inputs, labels)


class Stream(IterableDataset):
    """The same images without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(images())


class Lit(LightningModule):
    """A classifier with its data: no shuffling, no dropout."""

    def __init__(self, width: int = 8, norm: bool = True, optimizer: str = "sgd", lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = small_net(width, norm)
        self.losses: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        lr = self.hparams.lr
        if self.hparams.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(self.parameters(), lr, momentum=0.9, weight_decay=1e-3)
        else:
            optimizer = torch.optim.AdamW(self.parameters(), lr / 10)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]

    def train_dataloader(self) -> Any:
        return DataLoader(images(), batch_size=BATCH)

    def val_dataloader(self) -> Any:
        return DataLoader(images(24, seed=1), batch_size=BATCH)

    test_dataloader = val_dataloader


class Adversaries(LightningModule):
    """Two networks and two optimizers under manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6))
        self.critic = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1))
        self.example_input_array = torch.zeros(2, 4)
        self.after_step: list[float] = []
        self.generator_every = 1

    def forward(self, noise: Tensor) -> Tensor:
        return self.critic(self.generator(noise))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        generating, judging = self.optimizers()
        noise = batch[0].flatten(1)[:, :4]
        real = batch[0].flatten(1)[:, :6]
        judging.zero_grad()
        fake = self.generator(noise).detach()
        self.manual_backward(F.softplus(self.critic(fake)).mean() + F.softplus(-self.critic(real)).mean())
        judging.step()
        self.after_step.append(zero_share(self))
        if (batch_idx + 1) % self.generator_every == 0:
            generating.zero_grad()
            self.manual_backward(F.softplus(-self(noise)).mean())
            generating.step()
            self.after_step.append(zero_share(self))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.generator.parameters(), 0.01), torch.optim.SGD(
            self.critic.parameters(), 0.01, momentum=0.9
        )

    def train_dataloader(self) -> Any:
        return DataLoader(images(), batch_size=BATCH)


def zero_share(module: nn.Module) -> float:
    """The share of exact zeros in all weight matrices."""
    weights = [p for p in module.parameters() if p.dim() > 1]
    return sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)


class Events(Callback):
    """Records every pruning event as (epoch, optimizer steps done, batch)."""

    def __init__(self) -> None:
        self.times: list[tuple[int, int]] = []
        self.batches: list[int] = []
        self.reports: list[Any] = []
        self._batch = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batch = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch_idx

    def on_prune(self, trainer: Trainer, pl_module: LightningModule, plan: Any, report: Any) -> None:
        self.times.append((trainer.current_epoch, trainer.global_step))
        self.batches.append(self._batch)
        self.reports.append(report)


def trainer_for(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """A quiet Trainer on the CPU."""
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "callbacks": list(callbacks),
            "default_root_dir": folder,
            "logger": False,
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **options,
        }
    )


def fit(folder: Path, module: LightningModule, *callbacks: Callback, **options: Any) -> Trainer:
    """Train ``module`` from a fixed seed on."""
    torch.manual_seed(0)
    trainer = trainer_for(folder, *callbacks, **options)
    trainer.fit(module)
    return trainer


def widths(module: nn.Module) -> list[int]:
    """Output channels of every layer with a weight matrix."""
    return [p.shape[0] for p in module.parameters() if p.dim() > 1]


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, and of the same types: tensors and numbers, also in dicts, lists and tuples."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


def curves(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Where each line of a panel of matplotlib goes, by the label that the legend shows."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}
