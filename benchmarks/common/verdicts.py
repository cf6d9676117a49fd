"""Who is ahead on CIFAR-10, in sentences: ours, a peer or a control."""

from __future__ import annotations

import statistics
from typing import Any

from common.cells import DENSE, TRAINED_ON
from common.cifar_methods import CHANNELS
from common.cifar_table import ORDER, OWN, UNITS, judged, level, noise

OURS = {*OWN, *(method for method in CHANNELS if method.startswith("lightning_prune"))}  # plain L2 is a control
UNPRUNED = {DENSE: "before pruning", TRAINED_ON: "when trained for as long"}
PEERS = ("Torch-Pruning", "ModelPruning")


def verdicts(content: dict[str, Any]) -> list[str]:
    """A sentence for each goal, over the seeds that all methods have there."""
    found = []
    dense: dict[tuple[int, str], dict[int, float]] = {}
    for row in content["rows"]:
        if row["method"] in UNPRUNED:
            dense.setdefault((row["depth"], row["method"]), {})[row["seed"]] = 100 * row["accuracy"]
    for table, methods in ORDER.items():
        rows = [row for row in content["rows"] if row["table"] == table]
        for depth, goal in sorted({(row["depth"], row["goal"]) for row in rows}):
            here = [row for row in rows if (row["depth"], row["goal"]) == (depth, goal)]
            points = {m: {r["seed"]: 100 * r["accuracy"] for r in here if r["method"] == m} for m in methods}
            sentence = verdict({method: own for method, own in points.items() if own}, judged(content))
            if sentence:
                found.append(
                    f"ResNet-{depth}, {UNITS[table].format(goal)}: {sentence}"
                    + lost(points, {method: dense.get((depth, method), {}) for method in UNPRUNED})
                )
    return found


def lost(points: dict[str, dict[int, float]], dense: dict[str, dict[int, float]]) -> str:
    """What the best method loses against the dense networks, over the seeds that all have."""
    found = []
    for method, own in dense.items():
        seeds = set.intersection(set(own), *(set(others) for others in points.values() if others))
        if seeds:
            best = max(statistics.mean(others[seed] for seed in seeds) for others in points.values() if others)
            before = statistics.mean(own[seed] for seed in seeds)
            how = f"{before - best:.1f} points more" if best < before else "no more"
            found.append(f"{before:.1f} % {UNPRUNED[method]} ({how})")
    return f" The dense network has {' and '.join(found)}." if found else ""


def verdict(points: dict[str, dict[int, float]], images: int) -> str:
    """The best method and the best of each other side; accuracies in % by method and seed, on so many images."""
    seeds = sorted(set.intersection(*(set(own) for own in points.values())))
    if not seeds:
        return ""
    means = {method: statistics.mean(own[seed] for seed in seeds) for method, own in points.items()}
    best, *others = sorted(means, key=lambda method: -means[method])

    def close(method: str) -> bool:
        return level(means[best] - means[method], means[best], images, len(seeds))

    leads = "is highest with" if any(close(method) for method in others) else "is best with"
    clauses, picked = [f"**{best}** {leads} {means[best]:.1f} %"], False
    for name, side in (
        ("of this package", [method for method in (best, *others) if method in OURS]),
        ("of the peers", [method for method in (best, *others) if method.startswith(PEERS)]),
    ):
        picked |= len(side) > 1
        if side and best not in side:
            which = f"the best of {len(side)} {name}" if len(side) > 1 else f"the only one {name}"
            how = "on a par" if close(side[0]) else behind(points[best], points[side[0]], seeds)
            clauses.append(f"{side[0]}, {which}, is {how} at {means[side[0]]:.1f} %")
        elif len(side) > 1:
            clauses[0] += f", the best of {len(side)} {name}"
    about = [f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"]
    if len(seeds) == 1:
        error = noise(means[best], images)
        about.append(f"the standard error of an accuracy on {images:,} images is {error:.1f} points")
    if picked:
        about.append("the best of several methods is selected on these images")
    return f"{'; '.join(clauses)} ({'; '.join(about)})."


def behind(best: dict[int, float], other: dict[int, float], seeds: list[int]) -> str:
    """The mean of the differences within a seed, and their standard deviation."""
    differences = [best[seed] - other[seed] for seed in seeds]
    spread = f" ± {statistics.stdev(differences):.1f}" if len(seeds) > 1 else ""
    return f"{statistics.mean(differences):.1f}{spread} points behind"
