"""What pruned networks save in time: python benchmarks/speed.py [--small | --medium] [--device cpu] [--threads 1].

ResNet-18 and -50, MobileNetV2 and ViT-B/16 lose 25, 50 and 75 % of the channels of every group (by magnitude; weights
are random, which does not matter to time), with and without ``round_to=8``, and once only by masks: the same channels
zero, all shapes as before. All of these are timed in turns, pass by pass, in one process.

The ideal speed-up is dense / pruned MACs; ``arrives`` is the share of it that is measured: (speed-up - 1) / (ideal -
1).
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from common.provenance import in_words, provenance
from common.quiet import quiet
from common.tables import RESULTS, markdown, page, show, sized, stem, write
from torch import nn
from torchvision.models import get_model

from lightning_prune import Channels, prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.network.example_input import Example
from lightning_prune.network.size import count_macs
from lightning_prune.network.timing import Clock
from lightning_prune.surgery.apply import zero_removed

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "vit_b_16")
SHARES = (0.25, 0.5, 0.75)
ROUNDINGS = (1, 8)
BOTH = ["eager", "compiled"]
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {"networks": ["resnet18", "mobilenet_v2"], "batches": [1], "modes": ["eager"], "repeats": 20},
    "medium": {"networks": list(NETWORKS), "batches": [1], "modes": BOTH, "repeats": 20},
    "full": {"networks": list(NETWORKS), "batches": [1, 32], "modes": BOTH, "repeats": 100},
}
WARMUP = 5


@dataclass(frozen=True)
class Variant:
    """What is timed, and what it computes of one image."""

    kind: str
    share: float  # of the channels
    macs: float
    network: nn.Module


def variants(name: str) -> Iterator[Variant]:
    """The dense network first."""
    torch.manual_seed(0)
    dense, example = get_model(name, weights=None).eval(), torch.zeros(1, 3, 224, 224)
    yield Variant("dense", 0.0, count_macs(dense, Example.of(example)), dense)
    for share in SHARES:
        for rounding in ROUNDINGS:
            pruned = copy.deepcopy(dense)
            report = prune_once(pruned, example, granularity=Channels(round_to=rounding), budget=Ratio(share))
            assert report.before.macs is not None
            assert report.after.macs is not None
            if rounding == 1:
                masked = copy.deepcopy(dense)
                zero_removed(masked, report.plan)
                yield Variant("masks", share, report.before.macs, masked)
            yield Variant("channels" if rounding == 1 else f"round_to={rounding}", share, report.after.macs, pruned)


@torch.inference_mode()
def times(networks: list[nn.Module], images: torch.Tensor, repeats: int) -> list[list[float]]:
    """Milliseconds of each pass of each network; they take turns, each turn begun by another."""
    clock = Clock(images.device)
    passes: list[list[float]] = [[] for _ in networks]
    for turn in range(WARMUP + repeats):
        for place in range(len(networks)):
            number = (place + turn) % len(networks)
            ms = clock.pass_ms(partial(networks[number], images))
            if turn >= WARMUP:
                passes[number].append(ms)
    return passes


def rows_of(name: str, batch: int, device: str, compiled: bool, repeats: int) -> list[dict[str, Any]]:
    """Every variant of one network under the same conditions."""
    kinds = list(variants(name))
    networks = [kind.network.to(device) for kind in kinds]
    if compiled:
        torch.compiler.reset()
        networks = [torch.compile(network, dynamic=False) for network in networks]  # type: ignore[misc]
    passes = times(networks, torch.randn(batch, 3, 224, 224, device=device), repeats)
    rows = []
    for kind, own in zip(kinds, passes, strict=True):
        ratio = statistics.median(d / p for d, p in zip(passes[0], own, strict=True))
        ideal = kinds[0].macs / kind.macs
        rows.append({
            "network": name, "batch": batch, "device": device, "mode": "compiled" if compiled else "eager",
            "kind": kind.kind, "share": kind.share, "macs": kind.macs, "median_ms": statistics.median(own),
            "p99_ms": float(np.percentile(own, 99)), "speed_up": ratio, "ideal": ideal,
            "arrives": (ratio - 1) / (ideal - 1) if ideal > 1 else None,
        })  # fmt: skip
    return rows


TITLE = "What pruned networks save in time"
HEADINGS = [
    "network", "batch", "mode", "removed", "how", "MACs", "median ms", "p99 ms", "speed-up", "theoretical",
    "share of theoretical",
]  # fmt: skip


def cells_of(row: dict[str, Any]) -> list[str]:
    arrives = "" if row["arrives"] is None else f"{row['arrives']:.0%}"
    macs = f"{row['macs'] / 1e6:,.0f} M"
    return [
        row["network"], str(row["batch"]), row["mode"], f"{row['share']:.0%}", row["kind"], macs,
        f"{row['median_ms']:.2f}", f"{row['p99_ms']:.2f}", f"{row['speed_up']:.2f}", f"{row['ideal']:.2f}", arrives,
    ]  # fmt: skip


def text(content: dict[str, Any], figure: str) -> str:
    """The page beside the JSON file."""
    table = markdown(HEADINGS, [cells_of(row) for row in content["rows"]])
    how = f"{content['repeats']} passes of each, in turns, on {content['device']}. {in_words(content)}"
    return page(TITLE, table, f"![Speed-up against what is removed]({figure})", how)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Speed-up against the share removed: a column for each network, a row for each batch size and mode."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["network"] for row in rows))
    ways = list(dict.fromkeys((row["batch"], row["mode"]) for row in rows))
    size = (1 + 3 * len(names), 0.5 + 2.8 * len(ways))
    figure, panels = plt.subplots(len(ways), len(names), figsize=size, squeeze=False, layout="constrained")
    for way, line in zip(ways, panels, strict=True):
        for name, panel in zip(names, line, strict=True):
            own = [row for row in rows if row["network"] == name and (row["batch"], row["mode"]) == way]
            for kind in dict.fromkeys(row["kind"] for row in own if row["kind"] != "dense"):
                here = [row for row in own if row["kind"] == kind]
                shares = [row["share"] for row in here]
                panel.plot(shares, [row["speed_up"] for row in here], "o-", label=kind)
                if kind == "channels":
                    panel.plot(shares, [row["ideal"] for row in here], "k--", label="ideal")
            panel.set(title=f"{name}, batch {way[0]}, {way[1]}", xlabel="share of channels removed", ylabel="speed-up")
            panel.set(yscale="log")
    panels[0, 0].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sized(
        parser, small="ResNet-18 and MobileNetV2, batch 1, eager, 20 passes", medium="all networks, batch 1, 20 passes"
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, help="1 32")
    parser.add_argument("--modes", nargs="+", choices=BOTH)
    parser.add_argument("--repeats", type=int, help="100 passes of each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch; as they are by default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    chosen = [name for name in SETTINGS[options.size] if getattr(options, name)]
    if chosen and options.size != "full" and options.json is None:
        parser.error(f"--{chosen[0]} makes another run of the {options.size} one: give --json as well")
    for name, value in SETTINGS[options.size].items():
        setattr(options, name, getattr(options, name) or value)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    path = options.json or RESULTS / f"{stem('speed', options.size)}.json"
    quiet()
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        for batch in options.batches:
            for mode in options.modes:
                rows += rows_of(name, batch, options.device, mode == "compiled", options.repeats)
                gc.collect()
                print(f"{name}, batch {batch}, {mode}", file=sys.stderr, flush=True)
    content = {
        **provenance("torchvision", device=options.device), "seconds": round(time.perf_counter() - began, 1),
        "device": options.device, "repeats": options.repeats, "rows": rows,
    }  # fmt: skip
    draw(rows, path.with_suffix(".png"))
    write(path, content, text(content, path.with_suffix(".png").name))
    show(TITLE, HEADINGS, [cells_of(row) for row in rows])


if __name__ == "__main__":
    main()
