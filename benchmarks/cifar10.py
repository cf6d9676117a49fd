"""CIFAR-10, ResNet-20 and ResNet-56: python benchmarks/cifar10.py [--small | --medium | --long] [--goals 2.5].

The dense baseline is the published network fine-tuned on the JPEG training images. Every method begins with its
weights, has the same images, optimizer, learning rates and number of epochs, and is measured after the last of them;
nothing is selected by accuracy. The published weights have seen every training image, so a validation split of those
flatters all methods: choices (criteria, schedules, learning rates, the peers' options) were made beforehand on every
tenth training image (``--validation``), with ResNet-20, 2.5 and 4 times fewer MACs, few images and one or two seeds,
not on the test images. The networks of the table train on all training images.

Channels: each method removes channels until the network has 2, 2.5 or 4 times fewer multiply-accumulates, as
`count_macs` counts them, within 2 %. All remove the inner channels of residual blocks, one of ours those of
the residual streams as well. Weights: each method masks 80, 90 or 95 % of the weights of convolutions and the linear
layer of ResNet-20.

A row for each finished cell goes to the JSON file at once, and a cell that is there is not run again, so the table can
be measured in several calls: ``--seconds`` is when no cell is begun any more. On a GPU several cells run at the same
time, each in a process of its own (``--workers``), because small networks keep it waiting.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.cells import DENSE, TRAINED_ON, Cell, Setting, run
from common.cifar_methods import CHANNELS, WEIGHTS
from common.cifar_table import page, show
from common.provenance import provenance
from common.tables import RESULTS, sized, stem

FULL = Setting(  # rates about as the square root of the batch times those of the small setting, which were tried
    train_images=None, test_images=None, batch=256, dense_epochs=12, tuning_epochs=12, rates=(0.025, 0.1),
    device="cuda",
)  # fmt: skip
MEDIUM = Setting(
    train_images=20_000, test_images=None, batch=128, dense_epochs=2, tuning_epochs=5, rates=(0.02, 0.1),
    device="cpu", precision="bf16-mixed",
)  # fmt: skip
SMALL = Setting(
    train_images=1000, test_images=1000, batch=40, dense_epochs=3, tuning_epochs=3, rates=(0.01, 0.05), device="cpu"
)
SPEED_UPS, SPARSITIES = (2.0, 2.5, 4.0), (0.8, 0.9, 0.95)
LONG = Setting(  # 7.5 times the steps of the medium one
    train_images=None, test_images=None, batch=128, dense_epochs=3, tuning_epochs=14, rates=(0.05, 0.1),
    device="cpu", precision="bf16-mixed",
)  # fmt: skip
SETTINGS = {"small": SMALL, "medium": MEDIUM, "long": LONG, "full": FULL}
TABLES = ("channels", "weights")
Rows = list[dict[str, Any]]


def cells(tables: list[str], seeds: list[int], size: str) -> list[Cell]:
    """The dense networks first, as all others begin with them."""
    found = []
    depths = {table: depths_of(table, size) for table in tables}
    for seed in seeds:
        for depth in sorted({depth for some in depths.values() for depth in some}):
            found += [Cell("", depth, method, 0.0, seed) for method in (DENSE, TRAINED_ON)]
        for depth in depths.get("channels", ()):
            found += [Cell("channels", depth, method, goal, seed) for goal in SPEED_UPS for method in CHANNELS]
        for depth in depths.get("weights", ()):
            found += [Cell("weights", depth, method, goal, seed) for goal in SPARSITIES for method in WEIGHTS]
    return sorted(found, key=lambda cell: cell.method != DENSE)


def depths_of(table: str, size: str) -> tuple[int, ...]:
    """Which ResNets a table has."""
    if table == "channels":
        return {"long": (56,), "full": (20, 56)}.get(size, (20,))
    return () if size == "long" else (20,)


def wanted(options: argparse.Namespace) -> list[Cell]:
    """The cells that were asked for."""
    return [
        cell
        for cell in cells(options.tables, options.seeds, options.size)
        if not cell.goal or (cell.method in options.methods and cell.goal in options.goals)
    ]


def cell_of(row: dict[str, Any]) -> Cell:
    return Cell(row["table"], row["depth"], row["method"], row["goal"], row["seed"])


def still_valid(rows: Rows, dense_file: Callable[[Cell], Path]) -> Rows:
    """Rows of which the dense network is there; a new one would not be the one that they began with."""
    return [row for row in rows if dense_file(cell_of(row)).is_file()]


def measure(chosen: list[Cell], work: Callable[[Cell], Rows], workers: int, seconds: float) -> Iterator[Rows]:
    """The rows of each cell as it ends; none begins after ``seconds``, or before the dense networks are there."""
    began = time.monotonic()
    waves = [c for c in chosen if c.method == DENSE], [c for c in chosen if c.method != DENSE]
    if workers == 1:
        for cell in (*waves[0], *waves[1]):
            if time.monotonic() - began < seconds:
                yield work(cell)
        return
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (threads,)) as pool:
        for waiting in waves:
            running = set[Future[Rows]]()
            while running or (waiting and time.monotonic() - began < seconds):
                while waiting and len(running) < workers and time.monotonic() - began < seconds:
                    running.add(pool.submit(work, waiting.pop(0)))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()


def start_of(cell: Cell, setting: Setting, folder: Path) -> Path:
    """Where the weights of the dense network are."""
    key = zlib.crc32(repr(setting).encode())
    return folder / f"cifar10-dense-{cell.depth}-{cell.seed}-{key:08x}.pt"


def one(cell: Cell, setting: Setting, data: Path, folder: Path, scratch: bool) -> Rows:
    return run(cell, setting, data, start_of(cell, setting, folder), scratch)


def earlier(file: Path, setting: Setting) -> Rows:
    if not file.is_file():
        return []
    content = json.loads(file.read_text(encoding="utf-8"))
    found = Setting(**content["setting"])  # older files name no precision
    if json.dumps(asdict(found)) != json.dumps(asdict(setting)):
        sys.exit(f"{file} was measured with another setting, {content['setting']}; give another --json, or --anew")
    rows: Rows = content["rows"]
    return rows


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sized(
        parser, small="few images, few epochs, one seed, ResNet-20, for a CPU",
        medium="more images, three seeds, bf16; ResNet-20, for a CPU that has it",
        long="all images, more epochs, three seeds, bf16, channels only; ResNet-56, for a CPU that has it",
    )  # fmt: skip
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    methods, goals = [*CHANNELS, *WEIGHTS], [*SPEED_UPS, *SPARSITIES]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, help="dense networks are run always")
    parser.add_argument("--goals", nargs="+", type=float, choices=goals, default=goals)
    parser.add_argument("--seeds", nargs="+", type=int, help="0 1 2, or 0 with --small")
    parser.add_argument("--data", type=Path, default=os.environ.get("LIGHTNING_PRUNE_DATA"))
    parser.add_argument(
        "--no-scratch", action="store_true", help="ours without its architecture from scratch, for good"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--workers", type=int, help="cells at the same time: 8 on a GPU, else 1")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell after so many")
    parser.add_argument("--validation", action="store_true", help="accuracy on every tenth training image, for choices")
    parser.add_argument("--json", type=Path, help="benchmarks/cifar10.json; the page is beside it")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where dense networks are kept")
    parser.add_argument("--anew", action="store_true", help="forget the rows of the JSON file once there is a new one")
    parser.add_argument("--page", action="store_true", help="measure nothing; print and write the page")
    options = parser.parse_args(arguments)
    if options.data is None and not options.page:
        parser.error("where are the images? set LIGHTNING_PRUNE_DATA or give --data")
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.workers = options.workers or (8 if options.device == "cuda" else 1)
    options.seeds = options.seeds or ([0] if options.size == "small" else [0, 1, 2])
    name = stem("cifar10", options.size) + "_validation" * options.validation
    options.work.mkdir(parents=True, exist_ok=True)
    options.json = options.json or RESULTS / f"{name}.json"
    return options


def main(arguments: list[str] | None = None) -> None:
    options = options_of(arguments)
    setting = replace(SETTINGS[options.size], device=options.device, validation=options.validation)
    if options.device == "cuda":
        setting = replace(setting, precision="bf16-mixed")
    if not options.page:
        where = partial(start_of, setting=setting, folder=options.work)
        rows = [] if options.anew else still_valid(earlier(options.json, setting), where)
        finished = {cell_of(row) for row in rows}
        chosen = [c for c in wanted(options) if c not in finished]
        work = partial(
            one, setting=setting, data=Path(options.data), folder=options.work, scratch=not options.no_scratch
        )
        around = {**provenance("torch-pruning"), "workers": options.workers, "precision": setting.precision}
        for found in measure(chosen, work, options.workers, options.seconds):
            rows += [row | {"commit": around["commit"]} for row in found]
            content = around | {"setting": asdict(setting), "rows": rows}
            unfinished = options.json.with_suffix(".part")
            unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            unfinished.replace(options.json)
            print(*(f"{r['method']}, {r['goal']:g}: {r['accuracy']:.4f}" for r in found), sep="\n", file=sys.stderr)
    content = json.loads(options.json.read_text(encoding="utf-8"))
    show(content)
    options.json.with_suffix(".md").write_text(page(content), encoding="utf-8")


if __name__ == "__main__":
    main()
