"""The scripts in examples/ run as a user would start them, and print what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = {"prune_in_training.py", "prune_once.py", "wanda_one_shot.py"}

pytestmark = pytest.mark.slow


def output_of(script: str, folder: Path) -> str:
    """What the script prints, started in a folder of its own."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_is_tested() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == SCRIPTS


def test_prune_in_training(tmp_path: Path) -> None:
    text = output_of("prune_in_training.py", tmp_path)
    first, second = (
        (int(inputs), int(outputs)) for inputs, outputs in re.findall(r"^Conv2d\((\d+), (\d+),", text, re.MULTILINE)
    )
    (features,) = re.findall(r"^Linear\(in_features=(\d+), out_features=10,", text, re.MULTILINE)
    assert first[0] == 1
    assert second[0] == first[1]
    assert int(features) == 4 * second[1]  # 2 x 2 positions
    assert [width % 4 for width in (first[1], second[1])] == [0, 0]
    parameters = (
        sum(9 * inputs * outputs + 3 * outputs for inputs, outputs in (first, second)) + 10 * int(features) + 10
    )
    dense = 9 * 32 + 3 * 32 + 9 * 32 * 64 + 3 * 64 + 10 * 256 + 10
    assert 0.15 * dense < parameters <= 0.25 * dense  # Params(keep=0.25)


def test_prune_once(tmp_path: Path) -> None:
    text = output_of("prune_once.py", tmp_path)
    sizes = re.search(r"^parameters ([\d,]+) -> ([\d,]+), MACs ([\d,]+) -> ([\d,]+), sparsity ([\d.]+)$", text, re.M)
    assert sizes is not None
    params, after, macs, macs_after = (int(number.replace(",", "")) for number in sizes.groups()[:4])
    assert (params, macs) == (11_689_512, 1_814_073_344)
    assert 0.45 * macs < macs_after <= 0.5 * macs  # MACs(keep=0.5)
    assert float(sizes[5]) == pytest.approx(1 - after / params, abs=1e-4)
    widths = re.findall(r"^layer[\w.]+: (\d+) -> (\d+)$", text, re.MULTILINE)
    assert widths
    assert all(0 < int(left) < int(before) and int(left) % 8 == 0 for before, left in widths)
    assert "left alone: fc.weight (output of the network)" in text
    assert "left alone: conv1.weight ('conv1.weight' is excluded by the scope)" in text
    assert text.endswith("torch.Size([1, 1000])\n")


def test_wanda_one_shot(tmp_path: Path) -> None:
    text = output_of("wanda_one_shot.py", tmp_path)
    dense = re.match(r"dense: accuracy ([\d.]+)\n", text)
    assert dense is not None
    assert float(dense[1]) > 0.95
    pruned = re.findall(r"^(\w+)\((.+)\): sparsity ([\d.]+), accuracy ([\d.]+)$", text, re.MULTILINE)
    assert [name for name, *_ in pruned] == ["Wanda", "Wanda", "Magnitude"]
    assert [arguments for _, arguments, *_ in pruned] == ["by_output=True", "by_output=False", "p=2"]
    for *_, sparsity, accuracy in pruned:
        assert float(sparsity) == pytest.approx(0.5, abs=1e-4)  # Sparsity(0.5)
        assert float(accuracy) > float(dense[1]) - 0.05
