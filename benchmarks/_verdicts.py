"""Who is ahead on CIFAR-10, in sentences: ours, a peer or a control."""

from __future__ import annotations

import statistics
from typing import Any

from _cifar_methods import CHANNELS
from _cifar_table import ORDER, OWN

OURS = {*OWN, *(method for method in CHANNELS if method.startswith("lightning_prune"))}  # plain L2 is a control
PEERS = ("Torch-Pruning", "ModelPruning")
GOALS = {"channels": "{:g} times fewer MACs", "weights": "{:.0%} of the weights zero"}


def verdicts(content: dict[str, Any]) -> list[str]:
    """A sentence for each goal, over the seeds that all methods have there."""
    found = []
    for table, methods in ORDER.items():
        rows = [row for row in content["rows"] if row["table"] == table]
        for depth, goal in sorted({(row["depth"], row["goal"]) for row in rows}):
            here = [row for row in rows if (row["depth"], row["goal"]) == (depth, goal)]
            points = {m: {r["seed"]: 100 * r["accuracy"] for r in here if r["method"] == m} for m in methods}
            sentence = verdict({method: own for method, own in points.items() if own})
            if sentence:
                found.append(f"ResNet-{depth}, {GOALS[table].format(goal)}: {sentence}")
    return found


def verdict(points: dict[str, dict[int, float]]) -> str:
    """The best method and the best of the other side; accuracies in % by method and seed."""
    seeds = sorted(set.intersection(*(set(own) for own in points.values())))
    if not seeds:
        return ""
    ranked = sorted(points, key=lambda method: -statistics.mean(points[method][seed] for seed in seeds))
    best = ranked[0]
    ours = [method for method in ranked if method in OURS]
    peers = [method for method in ranked if method.startswith(PEERS)]
    others = (peers, "the best peer") if best in OURS else (ours, "the best of this package")
    sentence = f"**{best}** is best with {statistics.mean(points[best][seed] for seed in seeds):.1f} %"
    if others[0]:
        sentence += f"; {others[1]}, {others[0][0]}, is {behind(points[best], points[others[0][0]], seeds)}"
    return f"{sentence} ({len(seeds)} seed{'s' * (len(seeds) != 1)})."


def behind(best: dict[int, float], other: dict[int, float], seeds: list[int]) -> str:
    """The mean of the differences within a seed, and their standard deviation."""
    differences = [best[seed] - other[seed] for seed in seeds]
    spread = f" ± {statistics.stdev(differences):.1f}" if len(seeds) > 1 else ""
    return f"{statistics.mean(differences):.1f}{spread} points behind"
