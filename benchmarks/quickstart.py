"""Run a recipe for several seeds and tabulate what pruning brings: python benchmarks/quickstart.py.

Trainings follow one another, so that none disturbs the timings of another; nothing else should run beside them.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from common.tables import RESULTS
from rich import box
from rich.console import Console
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", type=Path, default=ROOT / "recipes" / "quickstart.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--json", type=Path, default=RESULTS / "quickstart.json", metavar="FILE")
    arguments = parser.parse_args()
    runs = [run(arguments.recipe.resolve(), seed) for seed in arguments.seeds]
    Console(soft_wrap=True, highlight=False).print(table(arguments.recipe.name, runs))
    content = {"recipe": arguments.recipe.name, "machine": machine(), "runs": runs}
    arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def run(recipe: Path, seed: int) -> dict[str, Any]:
    """Train once in a temporary folder."""
    print(f"{recipe.name}, seed {seed} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "lightning_prune.cli", "fit", "--config", str(recipe), f"--seed_everything={seed}"]
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        began = time.perf_counter()
        done = subprocess.run(
            [*command, "--trainer.enable_progress_bar=false"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            encoding="utf-8",
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            sys.exit(f"seed {seed} failed:\n{done.stderr[-3000:]}")
        return {"seed": seed, **curves(Path(folder)), **summary(done.stdout), "wall_seconds": round(seconds, 1)}


def curves(folder: Path) -> dict[str, int]:
    """The first and the last figures that `SparsityLogger` has written."""
    (version,) = {path.parent for path in folder.rglob("events.out.tfevents.*")}  # fit and tests write one file each
    log = EventAccumulator(str(version)).Reload()
    figures = {}
    for name in ("parameters", "nonzero_parameters", "macs"):
        points = log.Scalars(f"pruning/{name}")
        figures[f"{name}_dense"], figures[f"{name}_final"] = int(points[0].value), int(points[-1].value)
    return figures


def summary(text: str) -> dict[str, float | None]:
    """What only `PruningSummary` prints."""
    accuracy = re.search(r"^test_acc: dense ([\d.]+), final ([\d.]+)$", text, re.MULTILINE)
    speed = re.search(r"^speed-up: ([\d.]+) x", text, re.MULTILINE)
    return {
        "test_acc_dense": float(accuracy[1]) if accuracy else None,
        "test_acc_final": float(accuracy[2]) if accuracy else None,
        "speed_up": float(speed[1]) if speed else None,
    }


def left(figures: dict[str, Any]) -> int:
    """Parameters in the final network; where masks are in play, those that are not zero."""
    masked = figures["nonzero_parameters_final"] < 0.99 * figures["parameters_final"]
    return figures["nonzero_parameters_final" if masked else "parameters_final"]


def table(recipe: str, runs: list[dict[str, Any]]) -> Table:
    rows = Table(title=recipe, box=box.SIMPLE_HEAD, pad_edge=False)
    names = ("seed", "parameters", "after", "ratio", "MACs\nratio", "dense\nacc", "final\nacc", "speed-\nup", "wall\ns")
    for name in names:
        rows.add_column(name, justify="right", no_wrap=True)
    for figures in runs:
        rows.add_row(
            str(figures["seed"]),
            f"{figures['parameters_dense']:,}",
            f"{left(figures):,}",
            f"{figures['parameters_dense'] / left(figures):.2f}",
            f"{figures['macs_dense'] / figures['macs_final']:.2f}",
            _or_dash(figures["test_acc_dense"], ".4f"),
            _or_dash(figures["test_acc_final"], ".4f"),
            _or_dash(figures["speed_up"], ".2f"),
            f"{figures['wall_seconds']:.0f}",
        )
    return rows


def machine() -> dict[str, Any]:
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    main()
