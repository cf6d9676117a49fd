"""The traced pass against real forward passes, one core: python benchmarks/trace.py [--only P].

The analysis follows one pass of two examples on the meta device, where nothing is computed. For every classification
network of torchvision its time stands beside those of real forward passes of 1, 2, 4, ... images (224 x 224, 299 for
Inception), up to the first batch that takes as long. In turns in one process, medians of nine each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import zoo
from common.children import in_child
from common.tables import RESULTS
from rich.console import Console
from rich.table import Table

from lightning_prune.coupling import analysis, find_coupling
from lightning_prune.network.example_input import Example

ROUNDS = 9
BATCHES = (1, 2, 4, 8, 16)


def measure(name: str) -> dict[str, Any]:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    network = zoo.build(name, "default").eval()
    example = Example.of(zoo.inputs(name, "default", batch=1), network)
    row: dict[str, Any] = {"name": name, "forward_s": {}, "trace_s": {}}
    for batch in BATCHES:
        inputs = zoo.inputs(name, "default", batch=batch)
        forward, trace = [], []
        for _ in range(ROUNDS):
            forward.append(seconds(partial(zoo.run, network, inputs)))
            trace.append(traced(partial(find_coupling, network, example)))
        row["forward_s"][batch], row["trace_s"][batch] = statistics.median(forward), statistics.median(trace)
        if row["trace_s"][batch] <= row["forward_s"][batch]:
            row["images"] = batch
            return row
    row["images"] = None
    return row


@torch.no_grad()
def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def traced(analyze: Callable[[], Any]) -> float:
    """Seconds of the first pass that an analysis follows."""
    took: list[float] = []
    follow = analysis._pass

    def timed(*args: Any) -> Any:
        started = time.perf_counter()
        outputs = follow(*args)
        took.append(time.perf_counter() - started)
        return outputs

    with mock.patch.object(analysis, "_pass", timed):
        analyze()
    return took[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="pattern of names; several with commas")
    parser.add_argument("--json", type=Path, default=RESULTS / "trace.json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in zoo.names():
        if zoo.task(name) == "classification" and any(fnmatchcase(name, p) for p in options.only.split(",")):
            row, error = in_child(partial(measure, name), 3600, fresh=True)
            if error is not None:
                raise RuntimeError(f"{name}: {error}")
            rows.append(row)
    table = Table("network", "trace ms", "forward ms, 1 image", "images that take as long", box=None)
    for row in rows:
        trace, forward = (1e3 * row[key][1] for key in ("trace_s", "forward_s"))
        table.add_row(row["name"], f"{trace:.1f}", f"{forward:.1f}", str(row["images"]))
    console = Console(width=max(Console().width, 100))
    console.print(table)
    images = Counter(str(row["images"]) for row in rows)
    console.print(f"networks by the number of images whose forward pass takes as long: {dict(images)}")
    versions = {package: version(package) for package in ("torch", "torchvision", "lightning-prune")}
    answer = {"versions": versions, "networks": len(rows), "images": images, "rows": rows}
    options.json.write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
