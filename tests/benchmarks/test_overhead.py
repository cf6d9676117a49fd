"""The benchmark of what pruning costs, with settings that measure nothing: it runs, and its table is whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "overhead.py"
TINY = "--device cpu --threads 1 --steps 7 --batch 2 --pixels 32 --event-network resnet18 --weights 40000 --repeats 1"


@pytest.mark.slow
def test_every_part_but_memory(tmp_path: Path) -> None:
    file = tmp_path / "overhead.json"
    command = [sys.executable, str(SCRIPT), "--parts", "steps", "event", "threshold", *TINY.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--json", str(file)], capture_output=True, text=True, timeout=600, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(file.read_text())
    assert found["options"]["steps"] == 7
    rows = {(row["what"], row["against"].partition(",")[0]): row for row in found["rows"]}
    steps = [("Weights()", 1.02), ("ModelPruning", None), ("Taylor, every step", 1.05), ("Taylor, every 10th", 1.01)]
    for variant, limit in steps:
        row = rows[f"step: {variant}", "no pruning"]
        assert row["limit"] == limit
        assert 0 < row["ratio"][0] <= row["ratio"][1] <= row["ratio"][2]
        assert 0 < row["value"][0] <= row["value"][1] <= row["value"][2]
    assert rows["step: no pruning", "no pruning"]["ratio"] == [1, 1, 1]
    assert rows["step: Weights()", "ModelPruning"]["limit"] == 1
    assert rows["event of resnet18, DDP, 2 rank(s)", "an epoch: 100 steps"]["value"][1] > 0
    assert rows["memory: the event, beyond what the training holds", "the network: 45 MiB"]["value"][1] > 0
    assert len(rows) == 6 + 2 + 3
    for row in found["rows"]:
        assert row["what"] in done.stdout
