"""What the package and its command import before it is needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightning_prune

HEAVY = ("lightning", "pytorch_lightning", "torchvision", "matplotlib", "jsonargparse", "tensorboard", "torchmetrics")
COMPILER = ("torch._dynamo", "torch._inductor")
WITHOUT_TORCH = (*HEAVY, *COMPILER, "torch", "numpy", "yaml")
PRUNE = """
import torch
from lightning_prune import Channels, Weights, prune_once
from lightning_prune.criteria import Magnitude

for granularity in (Channels(), Weights()):
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2),
    )
    report = prune_once(network, torch.zeros(2, 1, 8, 8), granularity=granularity, criterion=Magnitude())
    assert report.sparsity > 0.1
"""


def command(*args: str) -> str:
    return f"""
from lightning_prune.cli import main
try:
    main({list(args)})
except SystemExit as stop:
    assert not stop.code
"""


def modules_after(code: str, folder: Path) -> set[str]:
    """Names of the modules that a process has imported after running the code."""
    shown = "import sys, json\nprint()\nprint(json.dumps(list(sys.modules)))"
    run = [sys.executable, "-c", f"{code}\n{shown}"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("startup")
    torch.save(torch.nn.Linear(2, 2).state_dict(), path / "weights.pt")
    return path


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import lightning_prune", (*WITHOUT_TORCH, "rich")),
        ("import lightning_prune\ndir(lightning_prune)\nlightning_prune.__version__", (*WITHOUT_TORCH, "rich")),
        ("from lightning_prune import prune_once, load_pruned, Channels", (*HEAVY, *COMPILER, "rich", "sympy")),
        ("import lightning_prune\nlightning_prune.budgets.MACs(keep=0.5)", (*HEAVY, *COMPILER, "rich")),
        (PRUNE, (*HEAVY, *COMPILER, "rich")),
        (command("--help"), (*WITHOUT_TORCH, "rich")),
        (command("--version"), (*WITHOUT_TORCH, "rich")),
        (command("methods"), WITHOUT_TORCH),
        (command("methods", "lamp"), (*WITHOUT_TORCH, "rich")),
        (command("methods", "--help"), (*WITHOUT_TORCH, "rich")),
        (command("inspect", "--help"), (*WITHOUT_TORCH, "rich")),
        (command("inspect", "weights.pt"), (*HEAVY, *COMPILER, "sympy")),
    ],
    ids=["import", "dir", "names", "package", "prune_once", "help", "version", "methods", "a method", "methods help",
         "inspect help", "inspect"],
)  # fmt: skip
def test_what_is_not_imported(code: str, unwanted: tuple[str, ...], folder: Path) -> None:
    assert sorted(modules_after(code, folder) & set(unwanted)) == []


def test_what_trains_imports_lightning(folder: Path) -> None:
    assert {"lightning", "jsonargparse", "torchvision"} <= modules_after(command("fit", "--help"), folder)


def test_names_are_those_of_their_modules() -> None:
    assert set(lightning_prune.__all__) <= set(dir(lightning_prune))
    assert lightning_prune.criteria.Taylor.__name__ == "Taylor"
    assert lightning_prune.prune_once is lightning_prune.functional.prune_once
    with pytest.raises(AttributeError, match="module 'lightning_prune' has no attribute 'Taylor'"):
        lightning_prune.Taylor  # noqa: B018
