"""Scripts that Lightning runs on several ranks, as a user's would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import lightning_prune

TESTS = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(folder: Path, ranks: int, source: str, methods: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """Run a script that may import helpers and test modules; method -> what each rank saved."""
    script = folder / "train.py"
    script.write_text(source)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PL_"))},
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            [
                *(str(path) for path in (TESTS, *TESTS.rglob("*/")) if path.is_dir() and path.name != "__pycache__"),
                str(Path(lightning_prune.__file__).parents[1]),
            ]
        ),
    }
    command = [sys.executable, str(script), str(ranks), str(folder)]
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=150, cwd=folder)
    assert done.returncode == 0, (folder / "log.txt").read_text()[-4000:]
    return {
        method: [torch.load(folder / f"{method}_{rank}.pt", weights_only=True) for rank in range(ranks)]
        for method in methods
    }
