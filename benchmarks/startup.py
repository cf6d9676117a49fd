"""How long the package and its command take to start: python benchmarks/startup.py [--repeats 9].

Each line is run in processes of its own, in turns with the others, after one round that fills the caches.
`import torch` is the reference of the same run. Medians, and the fastest and slowest run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common.provenance import provenance
from common.tables import RESULTS
from rich.console import Console
from rich.table import Table

PRUNE = """
import torch
from lightning_prune import Channels, prune_once
network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(),
                              torch.nn.Linear(288, 2))
prune_once(network, torch.zeros(2, 1, 8, 8), granularity=Channels())
"""
COMMAND = [sys.executable, "-m", "lightning_prune.cli"]
LINES = {  # what is started -> its command
    "import torch": [sys.executable, "-c", "import torch"],
    "import lightning_prune": [sys.executable, "-c", "import lightning_prune"],
    "import lightning_prune, all names": [sys.executable, "-c", "from lightning_prune import Plan, Scope, prune_once"],
    "first prune_once": [sys.executable, "-c", PRUNE],
    "lightning-prune --help": [*COMMAND, "--help"],
    "lightning-prune methods": [*COMMAND, "methods"],
    "lightning-prune inspect FILE": [*COMMAND, "inspect", "weights.pt"],
    "lightning-prune fit --help": [*COMMAND, "fit", "--help"],
}


def seconds(command: list[str], folder: str) -> float:
    """How long a process takes from its start to its end."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    return time.perf_counter() - started


def measure(repeats: int) -> list[dict[str, Any]]:
    taken: dict[str, list[float]] = {name: [] for name in LINES}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(torch.nn.Linear(8, 8).state_dict(), Path(folder) / "weights.pt")
        for turn in range(repeats + 1):
            for name, command in LINES.items():
                spent = seconds(command, folder)
                if turn:
                    taken[name].append(spent)
    return [{"name": name, "seconds": statistics.median(runs), "runs": runs} for name, runs in taken.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, default=RESULTS / "startup.json")
    options = parser.parse_args()
    origin = provenance()
    rows = measure(options.repeats)
    reference = rows[0]["seconds"]
    table = Table("process", "s, median", "fastest", "slowest", "s more than import torch", box=None)
    for row in rows:
        numbers = (row["seconds"], min(row["runs"]), max(row["runs"]), row["seconds"] - reference)
        table.add_row(row["name"], *(f"{number:.2f}" for number in numbers))
    Console(width=max(Console().width, 100)).print(table)
    options.json.write_text(json.dumps({**origin, "repeats": options.repeats, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
