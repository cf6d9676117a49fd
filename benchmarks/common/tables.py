"""Tables of strings: as Markdown, on a terminal, and as the page beside a JSON file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Lines = Sequence[Sequence[str]]

RESULTS = Path(__file__).resolve().parents[1] / "results"  # what the scripts write

SIZES = ("small", "medium", "long", "full")  # of a run; not all scripts have those in the middle


def stem(name: str, size: str) -> str:
    """The name of the files of a run.

    Example:
        >>> stem("speed", "small"), stem("speed", "full")
        ('speed_small', 'speed')
    """
    return name if size == "full" else f"{name}_{size}"


def sized(parser: argparse.ArgumentParser, **meanings: str) -> None:
    """An option such as ``--small`` for each size, of which ``size`` is what was given, else ``"full"``."""
    either = parser.add_mutually_exclusive_group()
    for size, meaning in meanings.items():
        either.add_argument(f"--{size}", dest="size", action="store_const", const=size, help=meaning)
    parser.set_defaults(size="full")


def markdown(headings: Sequence[str], lines: Lines) -> str:
    """A Markdown table, without an end of line.

    Example:
        >>> print(markdown(["method", "%"], [["dense", "91.0"]]))
        | method | % |
        |---|---|
        | dense | 91.0 |
    """
    rule = "|" + "---|" * len(headings)
    first, *rest = (f"| {' | '.join(cells)} |" for cells in [headings, *lines])
    return "\n".join([first, rule, *rest])


def page(title: str, *paragraphs: str) -> str:
    """A page of Markdown; empty paragraphs are left out."""
    return "\n\n".join([f"# {title}", *filter(None, paragraphs)]) + "\n"


def show(title: str, headings: Sequence[str], lines: Lines) -> None:
    """The table on a terminal, never narrower than its cells."""
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for cells in lines:
        table.add_row(*cells)
    Console(width=max(Console().width, 160), highlight=False).print(table)


def write(file: Path, content: dict[str, Any], text: str) -> None:
    """The JSON file, and the page beside it."""
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(text, encoding="utf-8")
