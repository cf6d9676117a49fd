"""Draw accuracy against size from the results in benchmarks/: python docs/tradeoff_figure.py."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "docs" / "pages" / "images" / "tradeoff.png"
CHANNELS = {  # method in the results -> its name in the figure
    "lightning_prune": "lightning_prune",
    "Torch-Pruning, distilled": "Torch-Pruning, with distillation by lightning_prune",
    "Torch-Pruning": "Torch-Pruning",
    "random channels": "random channels",
}
WEIGHTS = {
    "pruned after training": "pruned after training",
    "pruned while trained from scratch": "pruned while trained from scratch",
}
DENSE = {"dense, trained on": "dense, trained for as many epochs"}
STYLES = ("C0o-", "C1s--", "C3^:", "C7x:")


@dataclass(frozen=True)
class Point:
    """One size of one method: the mean over seeds, and the standard deviation of the accuracy."""

    size: float
    accuracy: float
    deviation: float


def content(name: str) -> dict[str, Any]:
    """The results of one benchmark.

    Raises:
        FileNotFoundError: If ``benchmarks/`` has no such file.
    """
    found = sorted((ROOT / "benchmarks").rglob(f"{name}.json"))
    if not found:
        raise FileNotFoundError(f"benchmarks/ has no {name}.json; run the benchmark first")
    loaded: dict[str, Any] = json.loads(found[0].read_text(encoding="utf-8"))
    return loaded


def curves(rows: list[dict[str, Any]], methods: dict[str, str], size: str) -> dict[str, list[Point]]:
    """Name in the figure -> points, the largest network first; sizes of one goal are averaged over seeds."""
    found = {}
    for method, name in methods.items():
        goals: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            if row["method"] == method:
                goals[row.get("goal", row["sparsity"])].append(row)
        points = [_point(own, size) for own in goals.values()]
        if points:
            found[name] = sorted(points, key=lambda point: -point.size)
    return found


def draw(path: Path) -> None:
    """Two panels: channels of ResNet-20 on CIFAR-10, weights of a small network on MNIST."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    cifar, mnist = content("cifar10_small"), content("mnist")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    rows = [row for row in cifar["rows"] if row["table"] in ("", "channels")]
    _panel(left, curves(rows, CHANNELS, "macs"), curves(rows, DENSE, "macs"), 1e6)
    setting = cifar["setting"]
    left.set_title(
        f"ResNet-20 on CIFAR-10, channels removed,\n{setting['tuning_epochs']} epochs of fine-tuning on "
        f"{setting['train_images']:,} images, {_seeds(rows)}",
        fontsize=10,
    )
    left.set_xlabel("MACs of one forward pass, millions")
    left.set_ylabel(f"accuracy on {setting['test_images']:,} test images, %")
    _panel(right, curves(mnist["rows"], WEIGHTS, "bytes"), curves(mnist["rows"], DENSE, "bytes"), 1024)
    right.set_title(
        f"small network on MNIST, weights set to zero,\nmean ± standard deviation, {_seeds(mnist['rows'])}", fontsize=10
    )
    right.set_xlabel("compressed state dict, KiB")
    right.set_ylabel(f"accuracy on {mnist['images']['test']:,} test images, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _seeds(rows: list[dict[str, Any]]) -> str:
    count = len({row["seed"] for row in rows})
    return f"{count} seed{'s' * (count != 1)}"


def _point(rows: list[dict[str, Any]], size: str) -> Point:
    accuracies = [100 * row["accuracy"] for row in rows]
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return Point(statistics.mean(row[size] for row in rows), statistics.mean(accuracies), deviation)


def _panel(axes: Any, pruned: dict[str, list[Point]], dense: dict[str, list[Point]], unit: float) -> None:
    ((name, (whole,)),) = dense.items()
    axes.plot(whole.size / unit, whole.accuracy, "k*", markersize=12, label=name)
    axes.axhline(whole.accuracy, color="k", linewidth=0.8, alpha=0.4)
    for style, (name, points) in zip(STYLES, pruned.items(), strict=False):
        sizes, accuracies = [point.size / unit for point in points], [point.accuracy for point in points]
        deviations = [point.deviation for point in points]
        axes.errorbar(sizes, accuracies, deviations if any(deviations) else None, fmt=style, capsize=3, label=name)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")


if __name__ == "__main__":
    draw(IMAGE)
