"""Only callbacks/, tasks/ and cli.py may need Lightning."""

import subprocess
import sys
from pathlib import Path

import pytest

import lightning_prune

PACKAGE = Path(lightning_prune.__file__).parent
NEED_LIGHTNING = ("lightning_prune.callbacks", "lightning_prune.tasks", "lightning_prune.cli")

BLOCKED = """
import importlib, sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning", "pytorch_lightning"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
"""


def rooms() -> list[str]:
    """Every module of the package by its dotted name, read off the files."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def run_blocked(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, timeout=120)


def test_every_room_is_found() -> None:
    found = rooms()
    assert {"lightning_prune", "lightning_prune.schedules", "lightning_prune.criteria.taylor"} <= set(found)
    assert len(found) == len(set(found)) > 30


def test_rooms_import_without_lightning() -> None:
    free = [name for name in rooms() if not name.startswith(NEED_LIGHTNING)]
    code = f"""
failed = {{}}
for name in {free!r}:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = repr(error)
assert not failed, failed
assert not any(name.partition(".")[0] in ("lightning", "pytorch_lightning") for name in sys.modules)
"""
    result = run_blocked(code)
    assert result.returncode == 0, result.stderr


def test_the_block_blocks() -> None:
    result = run_blocked("import lightning_prune.tasks.classifier")
    assert result.returncode != 0
    assert "lightning" in result.stderr
    assert "is blocked" in result.stderr


def test_callback_names_say_what_they_need() -> None:
    code = """
import lightning_prune
try:
    lightning_prune.IterativePruning
except ImportError as error:
    print(error)
"""
    result = run_blocked(code)
    assert result.stdout.strip() == "IterativePruning is a Lightning callback: pip install lightning", result.stderr


def test_pruning_works_without_lightning() -> None:
    code = """
import torch
from lightning_prune import Channels, Weights, prune_once
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
prune_once(net, torch.zeros(2, 4), granularity=Channels())
prune_once(net, torch.zeros(2, 4), granularity=Weights())
print(net[0].out_features, int((net[0].weight == 0).sum()))
"""
    result = run_blocked(code)
    assert result.stdout.split() == ["4", "8"], result.stderr


@pytest.mark.parametrize("name", lightning_prune.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(lightning_prune, name).__name__ == name
