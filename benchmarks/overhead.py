"""What pruning costs a training: python benchmarks/overhead.py [--parts steps memory event threshold].

steps: ResNet-18 under one Trainer for each variant, all in one process. They train in turns, a step each, in an order
that rotates; a step lasts from one ``on_train_batch_start`` to the next and includes what Lightning and callbacks do.
Ratios are medians of the ratios within one turn, so that all variants see the same machine. Of a Taylor that gathers
in every 10th step, the steps with and without are taken apart, and their medians added 1 : 9.
memory: the peak of three such steps, each variant in an interpreter of its own. On a CPU that is the resident memory,
with an allocator that gives back at once what is freed, so that it is what is in use.
event: an event of a ResNet-50 by ``IterativePruning`` under DDP, two ranks where the device is the CPU, from the first
to the last callback of ``on_train_epoch_start``; beside it stands the median of some steps before it, times 100.
threshold: half of 120 M weights, in square layers, by magnitude over all of them. Ours is ``WeightPruner.plan`` and
``apply``, so masks, report and zeros; theirs is ``torch.nn.utils.prune.global_unstructured``. Each run has an
interpreter of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common.resources import child, forget_peak, in_use, peak, synchronise
from common.tables import RESULTS
from common.trainings import (
    FIRST_EPOCH,
    OBSERVED_EVERY,
    VARIANTS,
    WARM_UP,
    Classifier,
    Turns,
    Watch,
    all_steps,
    pruning_of,
    trainer_for,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import prune

from lightning_prune import IterativePruning
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.criteria import Magnitude
from lightning_prune.pruners.weight_pruner import WeightPruner
from lightning_prune.schedules import Constant
from lightning_prune.scope import Scope

LIMITS = {"Weights()": 1.02, "Taylor, every step": 1.05, "Taylor, every 10th": 1.01}
MIB = 2**20


# ---- steps


def steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    turns = {variant: Turns(variant, options) for variant in VARIANTS}
    for number in range(all_steps(options)):
        first = number % len(VARIANTS)
        for variant in VARIANTS[first:] + VARIANTS[:first]:
            turns[variant].step()
    seconds = {variant: turn.seconds[1 + WARM_UP :] for variant, turn in turns.items()}
    rows = [compared_steps(variant, "no pruning", seconds, LIMITS.get(variant)) for variant in VARIANTS]
    return [*rows, compared_steps("Weights()", "ModelPruning", seconds, 1.0)]


def compared_steps(variant: str, other: str, seconds: dict[str, list[float]], limit: float | None) -> dict[str, Any]:
    ratios = [mine / theirs for mine, theirs in zip(seconds[variant], seconds[other], strict=True)]
    middle = quartiles(ratios)
    if "10th" in variant:
        first = (FIRST_EPOCH - WARM_UP) % OBSERVED_EVERY
        observed = ratios[first::OBSERVED_EVERY]
        rest = [ratio for number, ratio in enumerate(ratios) if number % OBSERVED_EVERY != first]
        if observed:
            pairs = zip(quartiles(observed), quartiles(rest), strict=True)
            middle = [(a + (OBSERVED_EVERY - 1) * b) / OBSERVED_EVERY for a, b in pairs]
    row = {"what": f"step: {variant}", "unit": "s", "value": quartiles(seconds[variant])}
    return row | {"against": other, "ratio": middle, "limit": limit}


def quartiles(values: list[float]) -> list[float]:
    """The median between the quartiles."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


# ---- memory


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    peaks = {variant: child(partial(peak_of, variant, options), exact_memory=True) for variant in VARIANTS}
    rows = []
    for variant, (bytes_, masks) in peaks.items():
        what = f"memory: {variant}" + (f", of it {masks / MIB:.0f} MiB masks" if masks else "")
        row = {"what": what, "unit": "MiB", "value": [bytes_ / MIB] * 3, "against": "no pruning; masks not counted"}
        ratio = (bytes_ - masks) / peaks["no pruning"][0]
        rows.append(row | {"ratio": [ratio] * 3, "limit": 1.1 if variant == "Weights()" else None})
    return rows


def peak_of(variant: str, options: argparse.Namespace) -> tuple[int, int]:
    """Bytes at the peak of a training beyond those before it, and those of boolean masks."""
    torch.set_num_threads(options.threads)
    lit = Classifier("resnet18", options, (FIRST_EPOCH, 3))
    before = in_use(options.device)
    trainer_for(options.device, pruning_of(variant, lit)).fit(lit)
    masks = sum(p.numel() for p in lit.parameters() if p.dim() > 1) if variant == "Weights()" else 0
    return peak(options.device) - before, masks


# ---- event


def event(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows, from a command of its own: Lightning starts the same command for the other rank."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "event.json"
        command = [sys.executable, __file__, "--event-file", str(file), "--event-network", options.event_network]
        for name in ("batch", "pixels", "device"):
            command += [f"--{name}", str(getattr(options, name))]
        command += ["--threads", str(max(1, options.threads // ranks(options)))]
        subprocess.run(command, check=True, timeout=3600)
        found = json.loads(file.read_text())
    epoch = 100 * statistics.median(found["steps"])
    row = {"what": f"event of {options.event_network}, DDP, {ranks(options)} rank(s)", "unit": "s"}
    row |= {"value": [found["event"]] * 3, "against": f"an epoch: 100 steps, {epoch:.0f} s"}
    extra, network = found["extra_memory"] / MIB, found["network"] / MIB
    memory = {"what": "memory: the event, beyond what the training holds", "unit": "MiB", "value": [extra] * 3}
    memory |= {"against": f"the network: {network:.0f} MiB", "ratio": [extra / network] * 3, "limit": None}
    return [row | {"ratio": [found["event"] / epoch] * 3, "limit": None}, memory]


def ranks(options: argparse.Namespace) -> int:
    return 2 if options.device == "cpu" else 1


class Before(Watch):
    """Also notes what is in use just before an event, and lets the peak begin anew."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.in_use = device, 0

    def on_train_epoch_start(self, *_: Any) -> None:
        forget_peak(self.device)
        self.in_use = in_use(self.device)
        super().on_train_epoch_start()


class After(Watch):
    """Also notes the peak of an event."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.peak = device, 0

    def on_train_epoch_start(self, *_: Any) -> None:
        super().on_train_epoch_start()
        self.peak = peak(self.device)


def train_for_event(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    first, last = Before(options.device), After(options.device)
    pruning = IterativePruning(Constant(1), Ratio(0.5), Magnitude())
    lit = Classifier(options.event_network, options, (8, 1))
    network = sum(parameter.nbytes for parameter in lit.parameters())
    trainer = trainer_for(options.device, [first, pruning, last], strategy="ddp", devices=ranks(options))
    trainer.fit(lit)
    assert pruning.sparsity > 0
    if trainer.is_global_zero:
        ends = [b - a for a, b in itertools.pairwise(first.batches)]
        extra = last.peak - first.in_use
        result = {"event": last.epochs[1] - first.epochs[1], "steps": ends[2:]}
        result |= {"extra_memory": extra, "network": network}
        options.event_file.write_text(json.dumps(result))


# ---- threshold


def threshold(options: argparse.Namespace) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(options.repeats):
        for tool in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
            seconds[tool].append(child(partial(mask_half, tool, options))["seconds"])
    extra = {tool: child(partial(mask_half, tool, options), exact_memory=True) for tool in seconds}
    weights = extra["ours"]["weights"]
    ratios = quartiles([a / b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)])
    name = f"{weights / 1e6:.0f} M weights"
    time_row = {"what": f"threshold, {name}: ours", "unit": "s", "value": quartiles(seconds["ours"])}
    time_row |= {"against": f"theirs, {statistics.median(seconds['theirs']):.1f} s", "ratio": ratios, "limit": 0.1}
    rows = [time_row]
    for tool, masks in (("ours", weights), ("theirs", 0)):
        share = (extra[tool]["bytes"] - masks) / (4 * weights)
        what = f"extra memory: {tool}" + (", besides the boolean masks" if masks else "")
        row = {"what": what, "unit": "MiB", "value": [(extra[tool]["bytes"] - masks) / MIB] * 3}
        row |= {"against": f"the weights, {4 * weights / MIB:.0f} MiB"}
        rows.append(row | {"ratio": [share] * 3, "limit": 0.1 if tool == "ours" else None})
    return rows


def square_layers(weights: int, device: str) -> nn.Sequential:
    torch.manual_seed(0)
    side = min(2000, math.isqrt(weights))
    return nn.Sequential(*[nn.Linear(side, side, bias=False) for _ in range(weights // side**2)]).to(device)


def mask_half(tool: str, options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    run_tool(tool, square_layers(2000, options.device))  # what only a first call pays for
    net = square_layers(options.weights, options.device)
    before = in_use(options.device)
    synchronise()
    began = time.perf_counter()
    masks = run_tool(tool, net)
    synchronise()
    seconds = time.perf_counter() - began
    bytes_ = peak(options.device) - before
    check(square_layers(options.weights, options.device), masks)
    return {"seconds": seconds, "bytes": bytes_, "weights": sum(p.numel() for p in net.parameters())}


def run_tool(tool: str, net: nn.Sequential) -> list[Tensor]:
    if tool == "theirs":
        prune.global_unstructured([(layer, "weight") for layer in net], prune.L1Unstructured, amount=0.5)
        return [layer.weight_mask.bool() for layer in net]
    pruner = WeightPruner(Magnitude(), Sparsity(0.5), Scope())
    pruner.apply(net, pruner.plan(net, None, 1.0), ())
    return list(pruner.masks.values())


def check(net: nn.Sequential, masks: list[Tensor]) -> None:
    """Half of the weights are hidden, none above one that stays."""
    sizes = [layer.weight.detach().abs() for layer in net]
    masks = [mask.to(size.device) for mask, size in zip(masks, sizes, strict=True)]
    hidden = sum(int((~mask).sum()) for mask in masks)
    assert hidden == round(0.5 * sum(mask.numel() for mask in masks))
    highest = max(float(size[~mask].max()) for size, mask in zip(sizes, masks, strict=True))
    assert all(float(size[mask].min()) >= highest for size, mask in zip(sizes, masks, strict=True))


# ---- all of it


PARTS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "steps": steps,
    "memory": memory,
    "event": event,
    "threshold": threshold,
}


def table(rows: list[dict[str, Any]]) -> Table:
    result = Table("what", "median", "quartiles", "against", "ratio", "quartiles", "limit", "holds", box=None)
    for row in rows:
        form, low, middle, high = (".3f" if row["unit"] == "s" else ".0f"), *row["value"]
        value = f"{middle:{form}} {row['unit']}", f"{low:{form}}-{high:{form}}" if low < high else ""
        low, middle, high = row["ratio"]
        ratio = f"{middle:.4f}", f"{low:.4f}-{high:.4f}" if low < high else ""
        limit = ("", "") if row["limit"] is None else (f"{row['limit']:g}", "yes" if middle <= row["limit"] else "NO")
        result.add_row(row["what"], *value, row["against"], *ratio, *limit)
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=40, help="measured steps of each variant")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pixels", type=int, help="height and width of the images; 64 on a CPU, else 224")
    parser.add_argument("--event-network", default="resnet50")
    parser.add_argument("--weights", type=int, default=120_000_000, help="of the threshold")
    parser.add_argument("--repeats", type=int, default=3, help="of the threshold")
    parser.add_argument("--json", type=Path, default=RESULTS / "overhead.json")
    parser.add_argument("--event-file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.pixels = options.pixels or (64 if options.device == "cpu" else 224)
    if options.event_file:
        train_for_event(options)
        return
    rows: list[dict[str, Any]] = []
    for part in options.parts:
        print(f"{part} ...", file=sys.stderr, flush=True)
        rows += PARTS[part](options)
    names = ("parts", "threads", "steps", "batch", "pixels", "event_network", "weights", "repeats")
    content = {
        "versions": {package: version(package) for package in ("torch", "torchvision", "lightning", "lightning-prune")},
        "machine": {"cpus": os.cpu_count(), "device": options.device, "processor": platform.machine()},
        "options": {name: getattr(options, name) for name in names},
        "rows": rows,
    }
    if options.device == "cuda":
        content["machine"]["gpu"] = torch.cuda.get_device_name()
    options.json.write_text(json.dumps(content, indent=1) + "\n")
    Console(width=max(Console().width, 160), highlight=False).print(table(rows))


if __name__ == "__main__":
    main()
