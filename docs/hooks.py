"""MkDocs hooks: fill in the tables of recipes from the headers of the recipe files."""

from __future__ import annotations

import re
from typing import Any

from lightning_prune.methods import METHODS, markdown_table

RECIPES = re.compile(r"<!-- recipes(?:: (\w+))? -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace ``<!-- recipes -->`` with the table of all recipes, ``<!-- recipes: weights -->`` with those of weights.

    The word after the colon is the granularity: ``weights``, ``channels`` or ``blocks``.
    """
    return RECIPES.sub(lambda place: recipes_table(place[1]), markdown)


def recipes_table(granularity: str | None = None) -> str:
    """A Markdown table with one row for each method.

    Raises:
        ValueError: If no method has this granularity.
    """
    chosen = [method for method in METHODS if granularity in (None, method.granularity)]
    if not chosen:
        raise ValueError(
            f"<!-- recipes: {granularity} -->: no method prunes {granularity}; use weights, channels or blocks"
        )
    return markdown_table(chosen)
