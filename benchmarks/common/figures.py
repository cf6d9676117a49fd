"""The table of figures in the repository's README, from the results that benchmarks have written."""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from mnist import TRAINED

from common.cells import DENSE, TRAINED_ON
from common.cifar_methods import OURS
from common.cifar_table import judged, percent, select
from common.results_page import content_of
from common.tables import SIZES, markdown

PLACE = re.compile(r"(<!-- figures -->\n).*?(<!-- /figures -->)", re.DOTALL)
FASTER, SPARSITY, SHARE = 2.5, 0.9, 0.5
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
    """The table: each row from the largest run that has all cells of it; rows without results are left out."""
    lines = []
    for name, line_of in (
        ("cifar10", partial(accuracy, depth=56)), ("cifar10", partial(accuracy, depth=20)), ("speed", speed),
        ("mnist", size),
    ):  # fmt: skip
        for run in reversed(SIZES):
            content = content_of(name, folder, run)
            line = line_of(content) if content else None
            if line:
                lines.append(line if run == "full" else [f"{line[0]} ({run} run)", *line[1:]])
                break
    return markdown(["benchmark", "lightning_prune", "for comparison"], lines)


def accuracy(content: Content, depth: int) -> list[str] | None:
    """The accuracy of a pruned ResNet and of its peers, over the seeds that all methods have."""
    rows = [row for row in content["rows"] if row["depth"] == depth]
    peers = ("Torch-Pruning", FASTER), ("Torch-Pruning, distilled", FASTER)
    cells = (OURS, FASTER), *peers, (DENSE, 0.0), (TRAINED_ON, 0.0)
    found = [{row["seed"]: row["accuracy"] for row in select(rows, *cell)} for cell in cells]
    seeds = sorted(set.intersection(*(set(own) for own in found)))
    if not seeds:
        return None
    ours, peer, distilled, dense, trained_on = (f"{percent([own[seed] for seed in seeds])} %" for own in found)
    setting = content["setting"]
    images = f"{setting['train_images']:,}" if setting["train_images"] else "all"
    what = (
        f"ResNet-{depth} on CIFAR-10, {FASTER:g} times fewer MACs, {setting['tuning_epochs']} epochs on {images} images"
    )
    return [
        f"{what}: accuracy on {judged(content):,} test images, {count(seeds, 'seed')}", ours,
        f"Torch-Pruning {peer}, with distillation by lightning_prune {distilled}; dense {dense}, trained for as many "
        f"epochs {trained_on}",
    ]  # fmt: skip


def speed(content: Content) -> list[str] | None:
    """The speed-up of ResNet-18 without half of its channels, at the largest batch, eager and compiled."""
    rows = [row for row in content["rows"] if (row["network"], row["mode"]) == ("resnet18", "eager")]
    batch = max((row["batch"] for row in rows), default=0)
    of = {row["kind"]: row for row in rows if (row["batch"], row["share"]) == (batch, SHARE)}
    if not {"round_to=8", "masks"} <= of.keys():
        return None
    cut, masks = of["round_to=8"], of["masks"]
    where = content["hardware"]
    if content["device"] == "cpu":  # the number of threads matters, not the number of cores
        threads = content["threads"]
        where = f"{re.sub(r', [0-9]+ cores$', '', where)}, {threads} thread{'s' * (threads != 1)}"
    what = f"ResNet-18 without {SHARE:.0%} of its channels, batch {batch}, {where}: speed-up"
    ours = f"{cut['speed_up']:.1f} times, {cut['arrives']:.0%} of the theoretical {cut['ideal']:.1f}"
    key = {name: cut[name] for name in ("network", "batch", "kind", "share")} | {"mode": "compiled"}
    compiled = [row for row in content["rows"] if key.items() <= row.items()]
    if compiled:
        ours += f"; {compiled[0]['speed_up']:.1f} times with both networks compiled"
    return [what, ours, f"{masks['speed_up']:.1f} times with the same channels masked"]


def size(content: Content) -> list[str] | None:
    """The compressed size and the accuracy of the MNIST network, pruned after it was trained."""
    dense = [row for row in content["rows"] if row["method"] == "dense, trained on"]
    own = [row for row in content["rows"] if (row["method"], row["sparsity"]) == (TRAINED, SPARSITY)]
    if not own or not dense:
        return None
    bytes_, before = (statistics.mean(row["bytes"] for row in rows) for rows in (own, dense))
    seeds = count({row["seed"] for row in own}, "seed")
    what = (
        f"MNIST, 20,410 parameters, {SPARSITY:.0%} of the weights zero: compressed state dict, and accuracy on "
        f"{content['images']['test']:,} test images, {seeds}"
    )
    smaller = f"{before / bytes_:.1f} times smaller, {percent([row['accuracy'] for row in own])} % accuracy"
    return [what, smaller, f"dense {before / 1024:.0f} KiB, {percent([row['accuracy'] for row in dense])} %"]


def count(things: Collection[Any], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"
