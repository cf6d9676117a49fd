"""Pruning methods: what the headers of the recipes say, as a table and as files to copy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PACKAGE = Path(__file__).parent
# In an installed package the recipes and the scripts among them are in lightning_prune/recipes.
_INSTALLED = _PACKAGE / "recipes"
_SCRIPTS = ("examples/wanda_one_shot.py",)
_TITLES = {
    "weights": "Weights (masked)",
    "channels": "Channels (removed)",
    "blocks": "Residual blocks (removed)",
}
_PREFIX = "recipe:"


@dataclass(frozen=True)
class Method:
    """A pruning method with a recipe or a script, as the header of that file describes it.

    Attributes:
        name: Name of the method, and title of its section in the documentation.
        description: What the method does, in one line.
        file: Recipe or script, relative to the root of the repository.
        granularity: What is pruned: ``"weights"``, ``"channels"`` or ``"blocks"``.
        papers: Authors, title and year of each paper, as ``Authors, 'Title', venue year``.
    """

    name: str
    description: str
    file: str
    granularity: str
    papers: tuple[str, ...] = ()

    @property
    def short(self) -> str:
        """Name of the file without folder and suffix."""
        return PurePosixPath(self.file).stem

    @property
    def is_script(self) -> bool:
        """Whether the method is a Python script rather than a recipe for ``fit``."""
        return self.file.endswith(".py")

    @property
    def command(self) -> str:
        """Command that runs the method."""
        return f"python {self.file}" if self.is_script else f"lightning-prune fit --config {_PREFIX}{self.short}"

    @property
    def path(self) -> Path:
        """The file on this machine."""
        return _path(self.file)


def _path(file: str) -> Path:
    """Where a file of the repository is: in the installed package, or in the checkout around it."""
    return _INSTALLED / PurePosixPath(file).name if _INSTALLED.is_dir() else _PACKAGE.parent / file


def read_header(text: str, file: str) -> Method:
    r"""The method that the leading comment lines of a recipe or script describe.

    Raises:
        ValueError: If the name with its description or the granularity is missing.

    Example:
        >>> method = read_header("# LAMP: masks small weights\n# Granularity: weights\n", "recipes/lamp.yaml")
        >>> method.name, method.description, method.granularity
        ('LAMP', 'masks small weights', 'weights')
    """
    header = re.match(r"(?:#.*\n)*", text)[0]  # type: ignore[index]
    title = re.match(r"# (.+?): (.+)\n# Granularity: (\w+)\n", header)
    if title is None or title[3] not in _TITLES:
        raise ValueError(
            f"{file}: a recipe begins with '# Name: description' and '# Granularity: {', '.join(_TITLES)}' (one of "
            f"them); got {header[:80]!r}"
        )
    name, description, granularity = title.groups()
    return Method(name, description, file, granularity, tuple(re.findall(r"^# Paper: (.+)$", header, re.MULTILINE)))


def _read_all() -> tuple[Method, ...]:
    """All methods, by granularity and name."""
    recipes = sorted(_path("recipes/quickstart.yaml").parent.glob("*.yaml"))
    files = [*(f"recipes/{path.name}" for path in recipes), *_SCRIPTS]
    found = [read_header(_path(file).read_text(encoding="utf-8"), file) for file in files if _path(file).is_file()]
    order = list(_TITLES)
    return tuple(sorted(found, key=lambda method: (order.index(method.granularity), method.name.lower())))


METHODS = _read_all()


def method_named(name: str) -> Method:
    """The method whose recipe or script has this name.

    Raises:
        ValueError: If there is none; the message has the nearest name.

    Example:
        >>> method_named("lamp").name
        'LAMP'
    """
    for method in METHODS:
        if method.short == name:
            return method
    near = get_close_matches(name, [method.short for method in METHODS], 1)
    hint = f"did you mean {near[0]!r}?" if near else "'lightning-prune methods' lists them"
    raise ValueError(f"there is no recipe {name!r}; {hint}")


def recipe_path(value: str) -> str:
    """The path of ``recipe:NAME``; any other value as it is.

    Raises:
        ValueError: If there is no recipe of this name, or it is a script.
    """
    if not value.startswith(_PREFIX):
        return value
    method = method_named(value.removeprefix(_PREFIX))
    if method.is_script:
        raise ValueError(f"{method.short} is a script, not a recipe: {_script_hint(method)}")
    return str(method.path)


def markdown_table(methods: Iterable[Method] = METHODS) -> str:
    """A table of methods for the documentation.

    Example:
        >>> print(markdown_table([method_named("erk")]))
        | method | description | file |
        |---|---|---|
        | ERK | sets the sparsity of each layer by its shape (Erdos-Renyi kernel) | `recipes/erk.yaml` |
    """
    rows = [f"| {m.name} | {_escaped(m.description)} | `{m.file}` |" for m in methods]
    return "\n".join(["| method | description | file |", "|---|---|---|", *rows])


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")


def show_methods(console: Console | None = None) -> None:
    """Print all methods and the commands that run one."""
    from rich.console import Console

    console = console or Console()
    for granularity, title in _TITLES.items():
        console.print(_table(title, [method for method in METHODS if method.granularity == granularity]))
    hints = [
        f"Run a recipe:  lightning-prune fit --config {_PREFIX}NAME",
        "Copy a recipe: lightning-prune methods NAME > NAME.yaml",
        *(f"{method.short} is a script: {_script_hint(method)}" for method in METHODS if method.is_script),
    ]
    for hint in hints:
        console.print(hint, highlight=False, soft_wrap=True)


def _script_hint(method: Method) -> str:
    name = f"{method.short}.py"
    return f"lightning-prune methods {method.short} > {name}; python {name}"


def _table(title: str, methods: Sequence[Method]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True, min_width=max(len(method.name) for method in METHODS))
    table.add_column("description")
    table.add_column("recipe", no_wrap=True, min_width=max(len(method.short) for method in METHODS))
    for method in methods:
        table.add_row(method.name, method.description, method.short)
    return table
