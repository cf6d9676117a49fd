"""What the benchmark of the criteria measured, in the places that docs/pages/reference/methods.md leaves for it."""

from __future__ import annotations

import re
import statistics
from typing import Any

PLACE = re.compile(r"(<!-- criteria:(.+?) -->\n).*?(<!-- /criteria -->)", re.DOTALL)
FLOOR = "Random"
ORDER = ("", "weights", "channels", "heads", "blocks")

Rows = list[dict[str, Any]]


def fill(page: str, rows: Rows) -> str:
    """The page with a table between each ``<!-- criteria:NAME; NAME -->`` and the ``<!-- /criteria -->`` behind it.

    Below the named methods stands ``Random``, where it was measured at the same shares.

    Raises:
        ValueError: If a name has no rows.
    """

    def filled(place: re.Match[str]) -> str:
        return place[1] + table(place[2].split("; "), rows) + place[3]

    return PLACE.sub(filled, page)


def table(names: list[str], rows: Rows) -> str:
    """A row for each method, and a column for each share that one of them was measured at."""
    known = {row["method"] for row in rows}
    for name in names:
        if name not in known:
            raise ValueError(f"the page has a place for {name!r}, of which nothing was measured: {sorted(known)}")
    columns = list(dict.fromkeys(cell(row) for row in rows if row["method"] in names))
    columns.sort(key=lambda column: (ORDER.index(column[0]), column[1]))
    lines = ["| validation accuracy, % |" + "".join(f" {heading(*column)} |" for column in columns)]
    lines.append("|---|" + "---|" * len(columns))
    floor = FLOOR not in names and any(row["method"] == FLOOR and cell(row) in columns for row in rows)
    for name in [*names, FLOOR] if floor else names:
        found = [summary([r for r in rows if r["method"] == name and cell(r) == column]) for column in columns]
        lines.append(f"| {name} |" + "".join(f" {text} |" for text in found))
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any]) -> tuple[str, float]:
    return row["granularity"], row["share"]


def heading(granularity: str, share: float) -> str:
    return f"{granularity}, {100 * share:.0f} % removed" if granularity else "dense"


def summary(rows: Rows) -> str:
    """Mean and standard deviation of the accuracies, in percent."""
    if not rows:
        return ""
    values = [100 * row["accuracy"] for row in rows]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"
