"""Compressed size against sparsity on MNIST: python benchmarks/mnist.py [--small].

A network of 20,410 parameters (12 filters of 3 x 3, pooling, one dense layer) is pruned gradually by magnitude, to 50 %
to 95 % zeros, once after it was trained, and once from its first step on in as many epochs altogether. The size is that
of the state dict, deflated. Figures are accuracies on the test images, which nothing is chosen by.

`LIGHTNING_PRUNE_DATA` names the folder with `mnist10k`, or `--root` one that torchvision's MNIST can be loaded from.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from common.provenance import in_words, provenance
from common.quiet import quiet
from common.tables import RESULTS, markdown, page, show, write
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST

from lightning_prune import IterativePruning, Weights
from lightning_prune.budgets import Sparsity
from lightning_prune.file_size import compressed_size
from lightning_prune.schedules import Cubic

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
DENSE_EPOCHS, TUNING_EPOCHS = 8, 4
TRAINED, SCRATCH = "pruned after training", "pruned while trained from scratch"


class TwentyThousand(LightningModule):
    """The network of TensorFlow's pruning guide: 20,410 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12 * 13 * 13, 10)
        )
        assert sum(parameter.numel() for parameter in self.parameters()) == 20_410

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


def images(root: Path, train: bool) -> TensorDataset:
    data = MNIST(str(root), train=train, download=False)
    return TensorDataset(data.data[:, None].float() / 255, data.targets)


def run(module: LightningModule, epochs: int, seed: int, data: dict[str, TensorDataset], *callbacks: Any) -> float:
    """Accuracy on the test images after ``epochs`` of training."""
    seed_everything(seed, verbose=False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data["train"], batch_size=64, shuffle=True))
    found = trainer.test(module, DataLoader(data["test"], batch_size=500), verbose=False)
    return found[0]["test_acc"]


def pruning(sparsity: float) -> IterativePruning:
    return IterativePruning(Cubic(0.0, 0.7, every=0.02, unit="share"), Sparsity(sparsity), granularity=Weights())


def rows_of(seed: int, sparsities: tuple[float, ...], data: dict[str, TensorDataset]) -> list[dict[str, Any]]:
    """All figures of one seed."""
    torch.manual_seed(seed)
    initial = TwentyThousand()
    dense = copy.deepcopy(initial)
    both = DENSE_EPOCHS + TUNING_EPOCHS
    accuracy = run(dense, DENSE_EPOCHS, seed, data)
    rows = [row("dense", 0.0, seed, dense, accuracy)]
    longer = copy.deepcopy(dense)
    rows.append(row("dense, trained on", 0.0, seed, longer, run(longer, TUNING_EPOCHS, seed, data)))
    for sparsity in sparsities:
        for name, start, epochs in ((TRAINED, dense, TUNING_EPOCHS), (SCRATCH, initial, both)):
            module = copy.deepcopy(start)
            accuracy = run(module, epochs, seed, data, pruning(sparsity))
            rows.append(row(name, sparsity, seed, module, accuracy))
        print(f"seed {seed}, {sparsity:.0%}: {rows[-2]['accuracy']:.4f}, {rows[-1]['accuracy']:.4f}", file=sys.stderr)
    return rows


def row(method: str, sparsity: float, seed: int, module: nn.Module, accuracy: float) -> dict[str, Any]:
    weights = [parameter for parameter in module.parameters() if parameter.dim() > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert abs(zeros - sparsity) < 0.001, (method, zeros)
    size = compressed_size(module.state_dict())
    return {"method": method, "sparsity": sparsity, "seed": seed, "accuracy": accuracy, "bytes": size}


def lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The table: a line for each sparsity of each method."""
    found = []
    for method, sparsity in dict.fromkeys((r["method"], r["sparsity"]) for r in rows):
        own = [r for r in rows if (r["method"], r["sparsity"]) == (method, sparsity)]
        kib = statistics.mean(r["bytes"] for r in own) / 1024
        dense = statistics.mean(r["bytes"] for r in rows if r["method"] == "dense") / 1024
        found.append([method, f"{sparsity:.0%}", spread(own), f"{kib:.1f} KiB", f"{dense / kib:.2f}"])
    return found


def spread(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation of the accuracies, in percent."""
    values = [100 * r["accuracy"] for r in rows]
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


TITLE = "Compressed size against sparsity on MNIST"
HEADINGS = ["method", "sparsity", "test accuracy, %", "compressed size", "times smaller"]


def text(content: dict[str, Any], figure: str) -> str:
    """The page beside the JSON file."""
    counts = content["images"]
    seeds = len({row["seed"] for row in content["rows"]})
    how = f"{counts['train']} training images, {counts['test']} test images, {seeds} seed(s). {in_words(content)}"
    return page(TITLE, markdown(HEADINGS, lines(content["rows"])), f"![Size and accuracy]({figure})", how)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Size and accuracy against sparsity."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for method, start in ((TRAINED, "dense, trained on"), (SCRATCH, "dense, trained on")):
        own = [r for r in rows if r["method"] in (method, start)]
        shares = sorted({r["sparsity"] for r in own})
        at = [[r for r in own if r["sparsity"] == share] for share in shares]
        left.plot(shares, [statistics.mean(r["bytes"] for r in found) / 1024 for found in at], "o-", label=method)
        right.plot(shares, [100 * statistics.mean(r["accuracy"] for r in found) for found in at], "o-", label=method)
    left.set(xlabel="sparsity", ylabel="compressed state dict, KiB", ylim=(0, None))
    right.set(xlabel="sparsity", ylabel="test accuracy, %")
    right.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="one seed")
    parser.add_argument("--root", type=Path, help="folder with MNIST/raw")
    parser.add_argument("--json", type=Path, help="benchmarks/mnist.json; page and figure are beside it")
    options = parser.parse_args(arguments)
    if options.root is None and "LIGHTNING_PRUNE_DATA" not in os.environ:
        parser.error("set LIGHTNING_PRUNE_DATA, or give --root a folder with MNIST/raw")
    root = options.root or Path(os.environ["LIGHTNING_PRUNE_DATA"], "mnist10k")
    file = options.json or RESULTS / ("mnist_small.json" if options.small else "mnist.json")
    quiet()
    began = time.perf_counter()
    data = {"train": images(root, True), "test": images(root, False)}
    seeds = (0,) if options.small else (0, 1, 2)
    rows = [found for seed in seeds for found in rows_of(seed, SPARSITIES, data)]
    seconds = round(time.perf_counter() - began, 1)
    content = {
        **provenance("torchvision", device="cpu"), "seconds": seconds,
        "images": {name: len(part) for name, part in data.items()}, "rows": rows,
    }  # fmt: skip
    draw(rows, file.with_suffix(".png"))
    write(file, content, text(content, file.with_suffix(".png").name))
    show(TITLE, HEADINGS, lines(rows))


if __name__ == "__main__":
    main()
