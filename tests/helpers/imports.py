"""The imports of a package, read from its source files."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from graphlib import CycleError, TopologicalSorter
from pathlib import Path


def modules_of(package: Path) -> dict[str, Path]:
    """The file of every module of ``package``, by dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: Set[str]) -> set[str]:
    """The modules in ``known`` that a file imports anywhere: at the top, in functions, or for type checking."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in known else node.module)
    return found & known


def graph_of(package: Path) -> dict[str, set[str]]:
    """For every module of ``package``, the modules of ``package`` that it imports."""
    modules = modules_of(package)
    return {name: imports_of(path, modules.keys()) for name, path in modules.items()}


def circle_in(graph: Mapping[str, Set[str]]) -> list[str]:
    """One circle of imports, from a module back to itself; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def names_from(path: Path) -> Iterator[tuple[str, str]]:
    """Every ``from module import name`` of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from ((node.module, alias.name) for alias in node.names)
