"""The SageMaker experiment, all rounds in one fit: python benchmarks/sagemaker.py [--small].

After the article 'Pruning machine learning models with Amazon SageMaker Debugger and Amazon SageMaker Experiments'
(AWS Machine Learning Blog): a ResNet-18 loses 200 units in every round, the lowest by Taylor rank, and is fine-tuned
between the rounds. There each round is a training job, here one ``Trainer.fit`` trains the dense network, prunes and
fine-tunes it, until `AccuracyGuard` finds validation accuracy more than ten points below that of the dense network, or
until fewer than 200 units could go. The article takes pretrained weights and Caltech-101 (`recipes/caltech101.yaml`),
which have to be downloaded; this takes fresh weights and CIFAR-10 at 64 x 64 pixels.

A unit is a filter, or filters that are added up in a residual stream, which can only go together: the 4,800 filters of
ResNet-18 are 2,880 units in 12 groups, of each of which one stays. That is enough for 14 rounds.

The guard sees every tenth training image, on which nothing trains. The accuracy on the test images is measured once
for each network that the guard judges, and decides nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.images import Batches, Images, accuracy, balanced, held_out, load, normalized
from common.provenance import provenance
from common.quiet import quiet
from common.sagemaker_page import HEADINGS, TITLE, conclusion, draw, lines, text
from common.tables import RESULTS, show, write
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from lightning_prune import AccuracyGuard, IterativePruning
from lightning_prune.budgets import Count
from lightning_prune.criteria import Taylor
from lightning_prune.network.example_input import Example
from lightning_prune.network.module_modes import eval_mode
from lightning_prune.network.size import measure
from lightning_prune.schedules import Rounds
from lightning_prune.tasks import ImageClassifier

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """What a curve depends on; None for all images."""

    images: tuple[int | None, int | None, int | None]  # train, validation, test
    batch: int
    dense_epochs: int
    tuning_epochs: int  # after each round
    rates: tuple[float, float]  # the highest learning rate of the dense network, and that of fine-tuning
    device: str
    pixels: int = 64
    rounds: int = 14
    count: int = 200  # units a round
    max_drop: float = 0.1
    seed: int = 0


FULL = Setting(images=(None, None, None), batch=256, dense_epochs=20, tuning_epochs=2, rates=(0.2, 0.02), device="cuda")
SMALL = Setting(images=(1500, 600, 1000), batch=32, dense_epochs=7, tuning_epochs=1, rates=(0.05, 0.01), device="cpu")


class Curve(Callback):
    """Measures each network that the guard judges, in float32."""

    def __init__(self, test: Images, pixels: int) -> None:
        self.test, self.example = test, Example.of(torch.zeros(1, 3, pixels, pixels))
        self.rows: Rows = []
        self.rounds = self.removed = 0

    def on_prune(self, trainer: Trainer, pl_module: LightningModule, plan: Any, report: Any) -> None:
        self.rounds += 1
        self.removed += sum(before - after for before, after in report.widths.values())

    def on_verdict(self, trainer: Trainer, verdict: Any) -> None:
        network = trainer.lightning_module
        size = measure(network, self.example)
        with eval_mode(network):
            tested = accuracy(network, self.test, trainer.strategy.root_device)
        self.rows.append({
            "round": self.rounds, "epoch": verdict.epoch, "removed": self.removed, "filters": filters_of(network),
            "params": size.params, "macs": size.macs, "val_acc": verdict.value, "test_acc": tested,
            "kept": verdict.kept, "says": verdict.says,
        })  # fmt: skip


def filters_of(network: nn.Module) -> int:
    """Output channels of all convolutions."""
    return sum(module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d))


def curve(classifier: LightningModule, parts: tuple[Images, Images, Images], setting: Setting) -> Rows:
    """A row for the dense network and one for each round, from one ``fit``."""
    on_gpu = setting.device == "cuda"
    train, val, test = (part.to(torch.device(setting.device)) for part in parts)
    measured = Curve(test, setting.pixels)
    trainer = Trainer(
        accelerator="gpu" if on_gpu else "cpu", devices=1, precision="bf16-mixed" if on_gpu else "32-true",
        benchmark=on_gpu, max_epochs=setting.dense_epochs + setting.rounds * setting.tuning_epochs,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[
            IterativePruning(
                Rounds(start=setting.dense_epochs, every=setting.tuning_epochs, count=setting.rounds),
                Count(setting.count),
                Taylor(),
            ),
            AccuracyGuard("val_acc", max_drop=setting.max_drop, compared_to="baseline", on_drop="stop"),
            measured,
        ],
    )  # fmt: skip
    trainer.fit(classifier, Batches(train, setting.batch), in_batches(val))
    return measured.rows


def classifier_of(setting: Setting) -> ImageClassifier:
    return ImageClassifier(
        "resnet18",
        optimizer=partial(SGD, lr=setting.rates[0], momentum=0.9, weight_decay=5e-4),
        lr_scheduler=partial(LambdaLR, lr_lambda=partial(height, setting=setting)),
    )


def height(epoch: int, setting: Setting) -> float:
    """The learning rate as a share of the highest: down on half a cosine while the network is dense, then level."""
    level = setting.rates[1] / setting.rates[0]
    done = min(epoch / setting.dense_epochs, 1.0)
    return level + (1 - level) * (1 + math.cos(math.pi * done)) / 2


def in_batches(images: Images, size: int = 500) -> DataLoader[tuple[Tensor, Tensor]]:
    """All images in their order; a bare list would be several loaders to Lightning."""
    parts = zip(normalized(images.pixels).split(size), images.labels.split(size), strict=True)
    return DataLoader(list(parts), batch_size=None)  # type: ignore[arg-type]


def parts_of(data: Path, setting: Setting) -> tuple[Images, Images, Images]:
    """What trains, what the guard sees, and the test images, all resized."""
    whole = (*held_out(load(data, "train")), load(data, "test"))
    train, val, test = (balanced(part, count) for part, count in zip(whole, setting.images, strict=True))
    return resized(train, setting.pixels), resized(val, setting.pixels), resized(test, setting.pixels)


def resized(images: Images, pixels: int) -> Images:
    """The same, ``pixels`` wide and high."""
    found = [
        F.interpolate(part.float(), (pixels, pixels), mode="bilinear").round().to(torch.uint8)
        for part in images.pixels.split(1000)
    ]
    return Images(torch.cat(found), images.labels)


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few images and epochs, for a CPU")
    parser.add_argument("--data", type=Path, default=os.environ.get("LIGHTNING_PRUNE_DATA"))
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--json", type=Path, help="benchmarks/sagemaker.json; page and figure are beside it")
    parser.add_argument("--page", action="store_true", help="measure nothing; write page and figure from the JSON file")
    options = parser.parse_args(arguments)
    if options.data is None and not options.page:
        parser.error("where are the images? set LIGHTNING_PRUNE_DATA or give --data")
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.json = options.json or RESULTS / f"sagemaker{'_small' * options.small}.json"
    return options


def run(setting: Setting, data: Path) -> dict[str, Any]:
    """Everything that goes to the JSON file."""
    began = time.perf_counter()
    seed_everything(setting.seed, verbose=False)
    parts = parts_of(data, setting)
    rows = curve(classifier_of(setting), parts, setting)
    return {
        **provenance("torchvision", device=setting.device), "seconds": round(time.perf_counter() - began, 1),
        "setting": asdict(setting), "images": [len(part) for part in parts], "rows": rows,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    options = options_of(arguments)
    quiet()
    if options.page:
        content = json.loads(options.json.read_text(encoding="utf-8"))
    else:
        content = run(replace(SMALL if options.small else FULL, device=options.device), options.data)
    picture = options.json.with_suffix(".png")
    draw(content, picture)
    write(options.json, content, text(content, picture.name))
    show(TITLE, HEADINGS, lines(content["rows"]))
    print(conclusion(content))


if __name__ == "__main__":
    main()
