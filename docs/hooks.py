"""MkDocs hooks: fill in the tables of recipes from the list of methods of the package."""

from __future__ import annotations

import re
from typing import Any

from lightning_prune import methods

RECIPES = re.compile(r"<!-- recipes(?:: (\w+))? -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace ``<!-- recipes -->`` with the table of all recipes, ``<!-- recipes: weights -->`` with those of weights.

    The word after the colon is what the method removes: ``weights``, ``channels`` or ``blocks``.
    """
    return RECIPES.sub(lambda place: recipes_table(place[1]), markdown)


def recipes_table(removes: str | None = None) -> str:
    """A Markdown table with one row for each method.

    Raises:
        ValueError: If no method removes ``removes``.
    """
    chosen = [method for method in methods.METHODS if removes in (None, method.removes)]
    if not chosen:
        raise ValueError(f"<!-- recipes: {removes} -->: no method removes {removes!r}; use weights, channels or blocks")
    rows = ["| method | removes | description | file |", "|---|---|---|---|"]
    for method in chosen:
        description = method.line.replace("|", r"\|")
        rows.append(f"| {method.name} | {method.removes} | {description} | `{method.file}` |")
    return "\n".join(rows)
