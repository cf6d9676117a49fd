"""The table of the CIFAR-10 benchmark, on a terminal and as a page."""

from __future__ import annotations

import math
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from common.cells import DENSE, SCRATCH, SCRATCH_FULL, TRAINED_ON
from common.cifar_methods import CHANNELS, DOCUMENTED, EXPERT, OURS, WEIGHTS
from common.provenance import load

Rows = list[dict[str, Any]]
ORDER = {"channels": (*CHANNELS, SCRATCH, SCRATCH_FULL), "weights": WEIGHTS}
UNITS = {"channels": "{:g} times fewer MACs", "weights": "{:.0%} of the weights zero"}
IMAGES = {False: 10_000, True: 5_000}  # all test images; with --validation, every tenth training image
CHANCE = 1 / 10
OWN = tuple(method for method in WEIGHTS if method not in (EXPERT, DOCUMENTED))
COMPARED: dict[str, list[tuple[tuple[str, ...], str]]] = {  # whose best is set against whom
    "channels": [
        ((OURS,), "Torch-Pruning"),
        ((OURS,), "Torch-Pruning, distilled"),
        (("lightning_prune, not distilled",), "Torch-Pruning"),
    ],
    "weights": [(OWN, EXPERT), (OWN, DOCUMENTED)],
}


def grids(content: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]], list[str]]]:
    """Title, header, lines and remarks of each table that has rows."""
    rows: Rows = content["rows"]
    found = []
    for table, methods in ORDER.items():
        for depth in sorted({row["depth"] for row in rows}):
            here = [row for row in rows if (row["table"], row["depth"]) == (table, depth)]
            goals = sorted({row["goal"] for row in here})
            if not goals:
                continue
            lines = [
                [method, *(figure(select(here, method, goal), table) for goal in goals)]
                for method in methods
                if any(row["method"] == method for row in here)
            ]
            for ours, peer in COMPARED[table]:
                compared = [against(here, ours, peer, goal, judged(content)) for goal in goals]
                count = sum(any(row["method"] == method for row in here) for method in ours)
                name = ours[0] if len(ours) == 1 else f"our best of {count}, picked on these images,"
                if any(compared):
                    lines.append([f"{name} less {peer}", *compared])
            header = ["", *(UNITS[table].format(goal) for goal in goals)]
            found.append((title(rows, depth, content), header, lines, remarks(here, table)))
    return found


def remarks(rows: Rows, table: str) -> list[str]:
    """What the lines of a table do not say: methods without rows, and why movement is at chance level."""
    found = []
    missing = [method for method in ORDER[table] if not any(row["method"] == method for row in rows)]
    if missing:
        found.append(f"Not yet run: {'; '.join(missing)}.")
    shares: dict[float, list[float]] = {}
    for row in rows:
        if row["method"] == "movement":
            shares.setdefault(row["goal"], []).append(row["accuracy"])
    low = [goal for goal, own in sorted(shares.items()) if statistics.mean(own) < 1.5 * CHANCE]
    if low:
        where = " and ".join(UNITS[table].format(goal) for goal in low)
        found.append(
            f"Movement is at chance level with {where}: the sums over so few steps from a converged network are noise. "
            "The criterion is meant for fine-tuning pretrained networks on another task, see "
            "[Movement pruning](../../docs/pages/reference/methods.md#movement-pruning)."
        )
    return found


def judged(content: dict[str, Any]) -> int:
    """How many images an accuracy is of."""
    setting = content["setting"]
    return setting["test_images"] or IMAGES[setting["validation"]]


def noise(points: float, images: int) -> float:
    """Standard error of an accuracy of ``points`` percent on so many images, in points.

    Example:
        >>> round(noise(80.0, 100), 6)
        4.0
    """
    share = points / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def level(difference: float, points: float, images: int, seeds: int) -> bool:
    """Whether a difference says nothing: with one seed, below the standard error of the higher accuracy."""
    limit = noise(points, images) if seeds == 1 else 0.0
    return abs(difference) < max(limit, 0.05)  # points; what is printed as 0.0


def title(rows: Rows, depth: int, content: dict[str, Any]) -> str:
    dense = {
        method: percent([row["accuracy"] for row in rows if (row["depth"], row["method"]) == (depth, method)])
        for method in (DENSE, TRAINED_ON)
    }
    what = "validation" if content["setting"]["validation"] else "test"
    shown = "; ".join(f"{method} {value}" for method, value in dense.items() if value)
    return f"ResNet-{depth}, {what} accuracy in % ({shown})"


def select(rows: Rows, method: str, goal: float) -> Rows:
    return [row for row in rows if row["method"] == method and row["goal"] == goal]


def figure(rows: Rows, table: str) -> str:
    """Accuracy, mean ± standard deviation over seeds, and what was reached on average."""
    if not rows:
        return ""
    if table == "channels":
        reached = f"{statistics.mean(row['speed_up'] for row in rows):.2f}x"
    else:
        reached = f"{100 * statistics.mean(row['sparsity'] for row in rows):.1f} %"
    return f"{percent([row['accuracy'] for row in rows])} at {reached}"


def percent(shares: list[float]) -> str:
    """Mean ± standard deviation.

    Example:
        >>> percent([0.9, 0.92]), percent([0.875]), percent([])
        ('91.0 ± 1.4', '87.5', '')
    """
    values = [100 * share for share in shares]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def against(rows: Rows, ours: tuple[str, ...], peer: str, goal: float, images: int) -> str:
    """The best mean of ``ours`` less the peer's, in points, over the seeds that both have."""
    theirs = {row["seed"]: row["accuracy"] for row in select(rows, peer, goal)}
    found = []
    for method in ours:
        own = {row["seed"]: row["accuracy"] for row in select(rows, method, goal)}
        shared = own.keys() & theirs.keys()
        if shared:
            means = [100 * statistics.mean(side[seed] for seed in shared) for side in (own, theirs)]
            found.append((means[0] - means[1], method, max(means), len(shared)))
    if not found:
        return ""
    points, method, higher, seeds = max(found)
    name = f" ({method})" if len(ours) > 1 else ""
    if level(points, higher, images, seeds):
        return f"{points:+.1f}{name}: level"
    return f"{points:+.1f}{name}" + ("" if points > 0 else f": {peer} is ahead")


def show(content: dict[str, Any]) -> None:
    console = Console(width=max(Console().width, 150), highlight=False)
    for heading, header, lines, said in grids(content):
        shown = Table(title=heading)
        for number, name in enumerate(header):
            shown.add_column(name, justify="right" if number else "left")
        for line in lines:
            shown.add_row(*line)
        console.print(shown)
        for remark in said:
            console.print(remark, soft_wrap=True, markup=False)
    console.print(footer(content), soft_wrap=True)


def page(content: dict[str, Any]) -> str:
    parts = ["# CIFAR-10", "Written by `python benchmarks/cifar10.py`, which describes the methods.", ""]
    for heading, header, lines, said in grids(content):
        table = ["| " + " | ".join(line) + " |" for line in [header, *lines]]
        table.insert(1, "|---|" + "---:|" * (len(header) - 1))
        parts += [f"## {heading}", "", *table, ""]
        for remark in said:
            parts += [remark, ""]
    parts[1:1] = [""]
    return "\n".join([*parts, footer(content)]) + "\n"


def footer(content: dict[str, Any]) -> str:
    """What the figures were measured with."""
    setting = content["setting"]
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    seeds = len({row["seed"] for row in content["rows"]})
    commits = ", ".join(dict.fromkeys(row["commit"] for row in content["rows"]))
    minutes = sum(row["seconds"] for row in content["rows"]) / 60
    return (
        f"{setting['train_images'] or 'All'} training images, {setting['test_images'] or 'all'} test images, "
        f"{setting['dense_epochs']} epochs dense and {setting['tuning_epochs']} of fine-tuning in batches of "
        f"{setting['batch']}, {seeds} seed(s); {minutes:.0f} minutes of training, {content['workers']} cell(s) at the "
        f"same time on {content['hardware']}{load(content)}, {content['precision']}; {versions}; commit "
        f"{commits}; {content['date']}."
    )
