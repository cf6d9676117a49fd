"""One cell of the CIFAR-10 benchmark: one network, one method, one goal, one seed."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from common.cifar_methods import CHANNELS, DECAY, OURS, WEIGHTS, channels_of, weights_of
from common.images import Images, TrainingImages, accuracy, balanced, held_out, load
from common.quiet import quiet
from lightning_prune.network.example_input import Example
from lightning_prune.network.size import count_macs
from lightning_prune.tasks import CifarResNet

PRETRAINED = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}
WARM_UP = 0.15  # share of a training
TOLERANCE = 0.02  # of the MACs asked for

DENSE, TRAINED_ON = "dense", "dense, trained on"
SCRATCH, SCRATCH_FULL = "same architecture from scratch", "the same, full budget"


@dataclass(frozen=True)
class Setting:
    """What all cells of a table share; None for all images."""

    train_images: int | None
    test_images: int | None
    batch: int
    dense_epochs: int
    tuning_epochs: int
    rates: tuple[float, float]  # the highest learning rate where training begins with given weights, and from scratch
    device: str
    precision: str = "32-true"  # of the trainings, in Lightning's words
    validation: bool = False  # train without every tenth training image, and report accuracy on those


@dataclass(frozen=True)
class Cell:
    """``goal``: how many times fewer MACs, or the sparsity of the weights; 0 for the dense network."""

    table: str
    depth: int
    method: str
    goal: float
    seed: int


class Classifier(LightningModule):
    """Cross entropy, SGD with momentum, a learning rate that rises and falls ``cycles`` times as fast as time."""

    def __init__(self, network: nn.Module, rate: float, cycles: int = 1) -> None:
        super().__init__()
        self.network, self.rate, self.cycles = network, rate, cycles
        self.example_input_array = torch.zeros(1, 3, 32, 32)

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), self.rate, momentum=0.9, weight_decay=DECAY)
        length = int(self.trainer.estimated_stepping_batches) / self.cycles
        scheduler = LambdaLR(optimizer, lambda step: height(min((step + 1) / length, 1.0)))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def height(done: float) -> float:
    """The learning rate as a share of the highest: up on a line, down on half a cosine."""
    if done < WARM_UP:
        return done / WARM_UP
    return (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


def run(cell: Cell, setting: Setting, data: Path, dense_file: Path, scratch: bool = True) -> list[dict[str, Any]]:
    """The rows of a cell; that of our channels also has the two networks of its architecture from ``scratch``.

    The cell of the dense network writes its weights to ``dense_file``, the others begin with them.
    """
    quiet()
    began = time.perf_counter()
    network: nn.Module = CifarResNet(cell.depth, weights=str(data / "pretrained" / PRETRAINED[cell.depth]))
    train, _ = splits(data, setting)
    if cell.method == DENSE:
        fit(network, train, setting, setting.dense_epochs, cell.seed, setting.rates[0])
        torch.save(network.state_dict(), dense_file)
        return [row(cell, network, setting, data, began)]
    network.load_state_dict(torch.load(dense_file, map_location="cpu", weights_only=True))
    if cell.method == TRAINED_ON:
        fit(network, train, setting, setting.tuning_epochs, cell.seed, setting.rates[0])
        return [row(cell, network, setting, data, began)]
    callbacks, cycles = callbacks_of(cell, network, setting)
    fit(network, train, setting, setting.tuning_epochs, cell.seed, setting.rates[0], callbacks, cycles)
    rows = [row(cell, network, setting, data, began)]
    if cell.method == OURS and scratch:
        for method, epochs in ((SCRATCH, setting.tuning_epochs), (SCRATCH_FULL, both(setting))):
            began = time.perf_counter()
            draw_anew(network, cell.seed)
            fit(network, train, setting, epochs, cell.seed, setting.rates[1])
            rows.append(row(Cell(cell.table, cell.depth, method, cell.goal, cell.seed), network, setting, data, began))
    return rows


def callbacks_of(cell: Cell, network: nn.Module, setting: Setting) -> tuple[list[Callback], int]:
    if cell.method in CHANNELS:
        return channels_of(cell.method, cell.goal, cell.seed, network), 1
    assert cell.method in WEIGHTS, cell.method
    return weights_of(cell.method, cell.goal, setting.tuning_epochs, network)


def both(setting: Setting) -> int:
    return setting.dense_epochs + setting.tuning_epochs


def fit(
    network: nn.Module, images: Images, setting: Setting, epochs: int, seed: int, rate: float,
    callbacks: list[Callback] | None = None, cycles: int = 1,
) -> None:  # fmt: skip
    """Train ``network`` in place."""
    seed_everything(seed, verbose=False)
    network.train()  # Lightning leaves modes as they are
    on_gpu = setting.device == "cuda"
    trainer = Trainer(
        accelerator="gpu" if on_gpu else "cpu", devices=1, precision=setting.precision, benchmark=on_gpu,
        max_epochs=epochs, callbacks=callbacks or [], limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(network, rate, cycles), TrainingImages(images, setting.batch))


def draw_anew(network: nn.Module, seed: int) -> None:
    """Fresh weights as ``CifarResNet`` draws them, and fresh statistics, in the shapes that ``network`` has."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            module.reset_parameters()
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)


@cache
def splits(data: Path, setting: Setting) -> tuple[Images, Images]:
    """What trains, and what the accuracy is of."""
    train = load(data, "train")
    if setting.validation:
        train, judge = held_out(train)
    else:
        judge = load(data, "test")
    return balanced(train, setting.train_images), balanced(judge, setting.test_images)


def row(cell: Cell, network: nn.Module, setting: Setting, data: Path, began: float) -> dict[str, Any]:
    """What a trained network is; where channels went, its MACs are those asked for."""
    seconds = time.perf_counter() - began
    network.cpu()
    example = Example.of(torch.zeros(1, 3, 32, 32))
    macs, dense = count_macs(network, example), count_macs(CifarResNet(cell.depth), example)
    if cell.table == "channels" and cell.goal:
        assert abs(macs * cell.goal / dense - 1) <= TOLERANCE, f"{cell}: {macs} of {dense} MACs"
    matrices = [m.weight for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    zeros = sum(int((w == 0).sum()) for w in matrices) / sum(w.numel() for w in matrices)
    return asdict(cell) | {
        "accuracy": accuracy(network, splits(data, setting)[1], torch.device(setting.device)),
        "macs": macs, "speed_up": dense / macs, "params": sum(p.numel() for p in network.parameters()),
        "sparsity": zeros, "seconds": round(seconds, 1),
    }  # fmt: skip
