"""The structure of the package: sizes of its folders, the direction of imports, and what needs Lightning."""

import ast
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
from helpers.imports import circle_in, graph_of, modules_of, names_from

import lightning_prune

PACKAGE = Path(lightning_prune.__file__).parent
TESTS = Path(__file__).parent
MODULES = modules_of(PACKAGE)
GRAPH = graph_of(PACKAGE)
FOLDERS = sorted(name for name, path in MODULES.items() if path.name == "__init__.py" and path.parent != PACKAGE)
NEED_LIGHTNING = ("lightning_prune.callbacks", "lightning_prune.tasks", "lightning_prune.cli")
ORDER = (  # each of these imports only from those before it
    "network",
    "coupling",
    "masks",
    "surgery",
    "old_paths",
    "checkpoint",
    "granularity",
    "scope",
    "schedules",
    "criteria",
    "penalties",
    "distilling",
    "file_size",
    "budgets",
    "pruners",
    "functional",
    "analysis",
    "deploy",
    "dynamic",
    "methods",
    "tasks",
    "callbacks",
    "cli",
    "__init__",
)
MIRRORS = {"loading", "supermask"}  # a callback and its core
ONE_DAY = {"analysis", "deploy", "dynamic"}  # packages that have their place and are not written yet

BLOCKED = """
import importlib, sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning", "pytorch_lightning"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
"""


def part_of(module: str) -> str:
    """The top-level package or module that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


# ---- sizes


def test_the_top_level_is_small() -> None:
    modules = [path for path in PACKAGE.glob("*.py")]
    folders = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(modules) <= 10, modules
    assert len(folders) <= 14, folders


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_are_small_and_have_a_purpose_and_a_face(folder: str) -> None:
    path = MODULES[folder]
    assert len([file for file in path.parent.glob("*.py") if file != path]) <= 20
    tree = ast.parse(path.read_text(encoding="utf-8"))
    purpose = (ast.get_docstring(tree) or "").splitlines()[0]
    assert purpose.endswith("."), purpose
    defined = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    exported = import_module(folder).__all__
    assert exported
    assert len(set(exported)) == len(exported)
    assert [name for name in exported if not hasattr(import_module(folder), name)] == []
    assert not defined


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_are_short(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 300


def test_file_names_are_unique() -> None:
    counted = Counter(path.stem for path in MODULES.values() if path.name != "__init__.py")
    assert {name for name, count in counted.items() if count > 1} == MIRRORS


def test_tests_mirror_the_package() -> None:
    mirrored = {path.parent.relative_to(PACKAGE) for path in MODULES.values()}
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    assert folders - mirrored <= {Path("benchmarks"), Path("files")}


# ---- the direction of imports


def test_there_is_no_import_circle() -> None:
    assert circle_in(GRAPH) == []


def test_a_circle_is_found() -> None:
    found = circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert found[0] == found[-1]
    assert sorted(found[1:]) == ["a", "b", "c"]


def test_type_checking_and_local_imports_are_read(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("if TYPE_CHECKING:\n    from package.two import Two\n")
    (package / "two.py").write_text("def two():\n    from package import one\n")
    assert graph_of(package) == {"package": set(), "package.one": {"package.two"}, "package.two": {"package.one"}}
    assert set(circle_in(graph_of(package))) == {"package.one", "package.two"}


def test_the_order_names_every_part() -> None:
    assert set(ORDER) - ONE_DAY <= {part_of(module) for module in MODULES} <= set(ORDER)


@pytest.mark.parametrize("part", ORDER)
def test_packages_import_only_what_stands_before_them(part: str) -> None:
    allowed = set(ORDER[: ORDER.index(part) + 1])
    wrong = {
        (module, imported)
        for module in GRAPH
        if part_of(module) == part
        for imported in GRAPH[module]
        if part_of(imported) not in allowed and imported != "lightning_prune"
    }
    assert wrong == set()


def test_modules_import_from_files() -> None:
    """A package's face is for users; inside, a name is imported from the file that defines it."""
    wrong = [
        (module, source, name)
        for module, path in MODULES.items()
        if path.name != "__init__.py" and part_of(module) != "cli"
        for source, name in names_from(path)
        if source in FOLDERS and f"{source}.{name}" not in MODULES
    ]
    assert wrong == []


# ---- what needs Lightning


def run_blocked(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, timeout=120)


def test_modules_import_without_lightning() -> None:
    free = [name for name in sorted(MODULES) if not name.startswith(NEED_LIGHTNING)]
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


def test_lightning_is_blocked() -> None:
    result = run_blocked("import lightning_prune.tasks.classifier")
    assert result.returncode != 0
    assert "lightning" in result.stderr
    assert "is blocked" in result.stderr


def test_callbacks_name_the_package_that_they_need() -> None:
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
