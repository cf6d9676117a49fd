"""The three figures of the repository's README, out of the files that benchmarks have written."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

from _cells import TRAINED_ON
from _cifar_methods import OURS
from _cifar_table import percent, select
from _results import content_of
from _tables import markdown
from mnist import TRAINED

PLACE = re.compile(r"(<!-- figures -->\n).*?(<!-- /figures -->)", re.DOTALL)
FASTER, SPARSITY, SHARE = 2.0, 0.9, 0.5
Content = dict[str, Any]


def fill(readme: str, folder: Path) -> str:
    """The README with the figures between ``<!-- figures -->`` and ``<!-- /figures -->``.

    Raises:
        ValueError: If there is no such place.
    """
    if not PLACE.search(readme):
        raise ValueError("README.md has no place for figures: write <!-- figures --> and <!-- /figures --> into it")
    return PLACE.sub(lambda place: f"{place[1]}{figures(folder)}\n{place[2]}", readme)


def figures(folder: Path) -> str:
    """A table of those that were measured, from full runs where there are."""
    lines = []
    for name, line_of in (("cifar10", accuracy), ("speed", speed), ("mnist", size)):
        full, small = (content_of(name, folder, small=small) for small in (False, True))
        if full is not None:
            lines.append(line_of(full))
        elif small is not None:
            what, *rest = line_of(small)
            lines.append([f"{what} (small run)", *rest])
    return markdown(["", "lightning_prune", "beside it"], lines)


def accuracy(content: Content) -> list[str]:
    """ResNet-20 at the first goal of the table."""
    rows = [row for row in content["rows"] if row["depth"] == 20]

    def of(method: str, goal: float = FASTER) -> str:
        return f"{percent([row['accuracy'] for row in select(rows, method, goal)])} %"

    setting = content["setting"]
    images = f"{setting['train_images']:,}" if setting["train_images"] else "all"
    what = f"ResNet-20 on CIFAR-10, {FASTER:g} times fewer MACs, {setting['tuning_epochs']} epochs on {images} images"
    peers = f"Torch-Pruning {of('Torch-Pruning')}, with our distillation {of('Torch-Pruning, distilled')}"
    return [f"{what}: test accuracy", of(OURS), f"{peers}; dense {of(TRAINED_ON, 0.0)}"]


def speed(content: Content) -> list[str]:
    """ResNet-18 without half of its channels, eager, at the largest batch."""
    rows = [row for row in content["rows"] if (row["network"], row["mode"]) == ("resnet18", "eager")]
    batch = max(row["batch"] for row in rows)
    of = {row["kind"]: row for row in rows if (row["batch"], row["share"]) == (batch, SHARE)}
    cut, masks = of["round_to=8"], of["masks"]
    what = f"ResNet-18 without {SHARE:.0%} of its channels, batch {batch}, {content['hardware']}: speed-up"
    arrives = f"{cut['speed_up']:.1f} times; {cut['arrives']:.0%} of the ideal {cut['ideal']:.1f} arrives"
    return [what, arrives, f"the same cut by masks {masks['speed_up']:.1f} times"]


def size(content: Content) -> list[str]:
    """The small network, pruned after it was trained."""
    dense = [row for row in content["rows"] if row["method"] == "dense, trained on"]
    own = [row for row in content["rows"] if (row["method"], row["sparsity"]) == (TRAINED, SPARSITY)]
    bytes_, before = (statistics.mean(row["bytes"] for row in rows) for rows in (own, dense))
    what = f"MNIST, 20,410 parameters, {SPARSITY:.0%} of the weights zero: compressed state dict"
    smaller = f"{before / bytes_:.1f} times smaller, {percent([row['accuracy'] for row in own])} % accuracy"
    return [what, smaller, f"dense {before / 1024:.0f} KiB, {percent([row['accuracy'] for row in dense])} %"]
