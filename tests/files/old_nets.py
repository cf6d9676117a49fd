"""Networks and trainings of the files in this folder. Files name ``old_nets.OldLit`` and ``old_nets``' networks.

Classes, arguments and values must not change: the files were written with them. For other ones add new names.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import lightning_prune.callbacks  # noqa: F401  (before Lightning)

# isort: split
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback

from lightning_prune import NM, AccuracyGuard, Blocks, IterativePruning, Regrowth, Weights
from lightning_prune.budgets import Count, MACs, Ratio, Sparsity
from lightning_prune.callbacks import GrowingPenalty, Rewind, Supermask
from lightning_prune.criteria import BlockInfluence, Taylor
from lightning_prune.schedules import Constant, Cubic, Linear, Rounds

STEPS, BATCH = 4, 4
EMA: Any = getattr(lightning_callbacks, "EMAWeightAveraging", None)  # Lightning 2.6 and later


def images(count: int = STEPS * BATCH) -> Tensor:
    """The same images on every machine."""
    numbers = torch.arange(count * 2 * 4 * 4, dtype=torch.float64)
    return torch.sin(numbers * numbers % 97).float().reshape(count, 2, 4, 4)


class Attention(nn.Module):
    """Attention that keeps its number of heads and their width as integers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads, self.head_dim = width, heads, width // heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], self.heads, self.head_dim)
        query, key, value = (part.reshape(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return x + self.out(found.reshape(x.shape[0], x.shape[1], self.heads * self.head_dim))


class Attentive(nn.Module):
    """Convolutions, one with a norm, then attention over the positions; a table that state dicts do not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.register_buffer("shift", torch.linspace(-1, 1, 8), persistent=False)
        self.to_tokens = nn.Conv2d(8, 8, 1)
        self.attention = Attention(8, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.to_tokens(self.stem(x) + self.shift[:, None, None]).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens).mean(1))


class Masked(nn.Module):
    """A residual block that may get a mask, so that a ``Passthrough`` takes its place."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.one, self.two, self.scale = nn.Linear(8, 8), nn.Linear(8, 8), scale

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        change = self.two(self.one(x).relu())
        return x + self.scale * (change if mask is None else change * mask)


class Plain(nn.Module):
    """A residual block with one argument, so that an ``nn.Identity`` takes its place."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.one, self.two, self.scale = nn.Linear(8, 8), nn.Linear(8, 8), scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.two(self.one(x).relu())


class Residual(nn.Module):
    """Blocks of both kinds; the later of each matter less."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 8)
        self.masked = nn.ModuleList(Masked(scale) for scale in (1.0, 0.3, 0.01))
        self.plain = nn.ModuleList(Plain(scale) for scale in (1.0, 0.2, 0.02))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(2).transpose(1, 2))
        mask = torch.ones(8)
        for layer in self.masked:
            x = layer(x, mask)
        for layer in self.plain:
            x = layer(x)
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    """A convolution and an LSTM over the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.conv(x).relu().flatten(2).transpose(1, 2))[0].mean(1))


def convolutions(norm: bool = True) -> nn.Sequential:
    """Two convolutions and a classifier."""
    norms = [nn.BatchNorm2d(8), nn.BatchNorm2d(8)] if norm else [nn.Identity(), nn.Identity()]
    first, second = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], nn.ReLU(), *pooled)


def perceptron() -> nn.Sequential:
    """Twenty hidden units."""
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 3))


def transformer() -> nn.Sequential:
    """PyTorch's encoder and square layers, of classes that every version has."""
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(2, 8), encoder, nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))


NETS: dict[str, Callable[[], nn.Module]] = {
    "attentive": Attentive,
    "residual": Residual,
    "recurrent": Recurrent,
    "convolutions": convolutions,
    "without_norms": lambda: convolutions(norm=False),
    "perceptron": perceptron,
    "transformer": transformer,
}


class OldLit(LightningModule):
    """A classifier with its data: no shuffling, no dropout.

    Args:
        net: The name of the network.
        average: Whether the module keeps an averaged copy of it.
        least: Below this number of parameters the validation logs 0 as `score`, else 1.
        low: An epoch in which it logs 0 in any case.
    """

    def __init__(self, net: str, average: bool = False, least: int = 0, low: int | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = NETS[net]()
        if average:
            self.average = AveragedModel(self.net, use_buffers=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def on_train_batch_end(self, *_: Any) -> None:
        if self.hparams.average:
            self.average.update_parameters(self.net)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def on_validation_epoch_end(self) -> None:
        self.log("score", float(size(self.net) >= self.hparams.least and self.current_epoch != self.hparams.low))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), 0.02, momentum=0.9)

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(images(), torch.arange(STEPS * BATCH) % 3), BATCH)

    val_dataloader = train_dataloader


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        net: Name of the network.
        callbacks: Makes the callbacks.
        epochs: Epochs of the whole training.
        saved: The epoch at whose end the checkpoint is written; later ones still prune.
        settings: More arguments of ``OldLit``.
    """

    net: str
    callbacks: Callable[[], list[Callback]]
    epochs: int = 4
    saved: int = 2
    settings: dict[str, Any] = field(default_factory=dict)

    def module(self) -> OldLit:
        return OldLit(self.net, **self.settings)


FIFTEEN = 15 * 32 + 15 + 15 * 3 + 3  # parameters of a perceptron with as many hidden units


def paused() -> list[Callback]:
    """The second event is held back for an epoch, and the third comes an epoch later than the schedule says."""
    return [IterativePruning(Rounds(1, 2, 3), Ratio(0.5)), AccuracyGuard("score", 0.1, on_drop="pause")]


def guarded() -> list[Callback]:
    """Twenty units become 16, then 12, which costs too much: 16 again, 14, 16 again, 15, and so on."""
    return [IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20)), AccuracyGuard("score", 0.1, on_drop="rollback", retry=2)]


RUNS: dict[str, Run] = {
    "channels": Run("attentive", lambda: [IterativePruning(Rounds(1, 1, 3), MACs(keep=0.4), Taylor())]),
    "weights": Run(
        "convolutions", lambda: [IterativePruning(Cubic(0, 3), Sparsity(0.8), "magnitude", granularity=Weights())]
    ),
    "n_of_m": Run("convolutions", lambda: [IterativePruning(Rounds(1, 2, 2), granularity=NM(2, 4))]),
    "blocks": Run("residual", lambda: [IterativePruning(Rounds(1, 1, 3), Count(1), BlockInfluence(), Blocks())]),
    "rollback": Run("perceptron", guarded, epochs=7, saved=3, settings={"least": FIFTEEN}),
    "halved": Run("perceptron", guarded, epochs=7, saved=4, settings={"least": FIFTEEN}),
    "paused": Run("perceptron", paused, epochs=7, saved=4, settings={"low": 2}),
    "averaged_module": Run(
        "convolutions", lambda: [IterativePruning(Rounds(1, 1, 3), Ratio(0.5))], settings={"average": True}
    ),
    "both": Run(
        "convolutions",
        lambda: [
            IterativePruning(Rounds(1, 1, 3), Ratio(0.5), Taylor()),
            IterativePruning(Linear(0, 3), Sparsity(0.6), granularity=Weights()),
        ],
    ),
    "regrown": Run(
        "convolutions",
        lambda: [IterativePruning(Constant(), Sparsity(0.7), granularity=Weights(regrow=Regrowth(every=2)))],
    ),
    "rewound": Run(
        "convolutions",
        lambda: [Rewind(1), IterativePruning(Rounds(2, 1, 2), Sparsity(0.7), granularity=Weights())],
    ),
    "grown": Run(
        "convolutions",
        lambda: [GrowingPenalty(Constant(start=1), Ratio(0.5)), IterativePruning(Rounds(1, 2, 2), Ratio(0.5))],
    ),
    "supermask": Run("without_norms", lambda: [Supermask(0.5)]),
}
if EMA is not None:
    RUNS["averages"] = Run("convolutions", lambda: [IterativePruning(Rounds(1, 1, 3), Ratio(0.5)), EMA(decay=0.5)])


class Save(Callback):
    """Saves a checkpoint at the end of an epoch, and with it the accepted networks of a guard.

    Args:
        epoch: The epoch.
        path: The file.
        accepted: The folder for the accepted networks.
    """

    def __init__(self, epoch: int, path: Path, accepted: Path) -> None:
        self.epoch, self.path, self.accepted = epoch, path, accepted

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)
            for folder in Path(trainer.default_root_dir).glob("accepted-*"):
                shutil.copytree(folder, self.accepted / folder.name)


class Events(Callback):
    """Notes the epoch of each event, and the parameters and those that are not 0 right after it."""

    def __init__(self) -> None:
        self.found: list[list[int]] = []

    def on_prune(self, trainer: Trainer, pl_module: LightningModule, plan: Any, report: Any) -> None:
        net: Any = pl_module.net
        self.found.append([trainer.current_epoch, size(net), nonzero(net)])


def trainer_for(folder: Path, callbacks: list[Callback], epochs: int) -> Trainer:
    """A quiet Trainer on the CPU."""
    return Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        default_root_dir=folder,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def size(net: nn.Module) -> int:
    """Parameters of a network."""
    return sum(parameter.numel() for parameter in net.parameters())


def nonzero(net: nn.Module) -> int:
    """Parameters that are not 0."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in net.parameters())


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """In eval mode and without gradients."""
    training = net.training
    net.eval()
    with torch.no_grad():
        yield
    net.train(training)


def outputs(net: nn.Module, inputs: Tensor) -> Tensor:
    """What a network returns in eval mode."""
    with evaluating(net):
        found: Tensor = net(inputs)
    return found
