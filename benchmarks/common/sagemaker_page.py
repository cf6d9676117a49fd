"""The curve of `sagemaker.py`: table, sentences and figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

from common.provenance import in_words
from common.tables import markdown, page

Rows = list[dict[str, Any]]
TITLE = "200 units a round, in one fit"
HEADINGS = [
    "round", "units removed", "filters left", "parameters", "MACs", "validation, %", "test, %", "against dense, points",
    "guard",
]  # fmt: skip


def lines(rows: Rows) -> list[list[str]]:
    """The table: a line for each network."""
    return [
        [
            name_of(row),
            f"{row['removed']:,}",
            f"{row['filters']:,}",
            f"{row['params'] / 1e6:.3f} M",
            f"{row['macs'] / 1e6:.2f} M",
            f"{100 * row['val_acc']:.1f}",
            f"{100 * row['test_acc']:.1f}",
            f"{100 * (row['val_acc'] - rows[0]['val_acc']):+.1f}" if row["round"] else "",
            ("within" if row["kept"] else "stops") if row["round"] else "baseline",
        ]
        for row in rows
    ]


def name_of(row: dict[str, Any]) -> str:
    return str(row["round"]) if row["round"] else "dense"


def conclusion(content: dict[str, Any]) -> str:
    """How it ended."""
    rows, limit = content["rows"], points(content["setting"])
    dense, last = rows[0], next(row for row in reversed(rows) if row["kept"])
    if rows[-1]["kept"]:
        end = f"No round lost more than {limit}."
    else:
        end = f"Round {rows[-1]['round']} lost more than {limit}, and the guard stopped the training."
    return (
        f"{end} The last network within the limit, that of round {last['round']}, has "
        f"{dense['params'] / last['params']:.1f} times fewer parameters and {dense['macs'] / last['macs']:.1f} times "
        f"fewer MACs than the dense one, and {100 * (last['test_acc'] - dense['test_acc']):+.1f} points on the test "
        f"images.{caveat(content)}"
    )


def caveat(content: dict[str, Any]) -> str:
    """Where a dense network that has not seen all images is the measure."""
    setting = content["setting"]
    if setting["images"][0] is None:
        return ""
    return (
        f" The dense network is not fully trained: it started from random weights and has seen "
        f"{content['images'][0]:,} images {setting['dense_epochs']} times, so the cost of a round and "
        "the gain of further training cannot be separated."
    )


def points(setting: dict[str, Any]) -> str:
    """The guard's limit."""
    return f"{100 * setting['max_drop']:g} points"


def text(content: dict[str, Any], figure: str) -> str:
    """The page beside the JSON file."""
    setting, (train, val, test) = content["setting"], content["images"]
    how = (
        f"ResNet-18 from random weights, CIFAR-10 at {setting['pixels']} x {setting['pixels']}: {train:,} training "
        f"images, {val:,} validation images for the guard, {test:,} test images. {setting['dense_epochs']} epochs "
        f"dense, then {setting['tuning_epochs']} of fine-tuning after every round of {setting['count']} units, in one "
        "fit. A unit is a filter, together with those that a residual stream adds to it. The test images are not used "
        f"for any decision. {content['seconds'] / 60:.1f} minutes in all."
    )
    table = markdown(HEADINGS, lines(content["rows"]))
    picture = f"![Parameters and accuracy]({figure})"
    return page(TITLE, conclusion(content), picture, table, how, in_words(content))


def draw(content: dict[str, Any], path: Path) -> None:
    """Accuracy against parameters."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter

    rows, setting = content["rows"], content["setting"]
    params, val, test = ([row[key] for row in rows] for key in ("params", "val_acc", "test_acc"))
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(params, [100 * share for share in val], "o-", label="validation images (used by the guard)")
    axes.plot(params, [100 * share for share in test], "s:", markersize=4, alpha=0.7, label="test images")
    bound = 100 * (val[0] - setting["max_drop"])
    axes.axhline(bound, color="tab:red", linestyle="--", label=f"guard: {points(setting)} below the dense network")
    for row in rows:
        high = 100 * max(row["val_acc"], row["test_acc"])
        axes.annotate(
            name_of(row), (row["params"], high), (0, 7), textcoords="offset points", ha="center", fontsize=8,
            rotation=0 if row["round"] else 45, bbox={"color": "white", "pad": 0.5, "alpha": 0.8},
        )  # fmt: skip
    axes.set(
        xscale="log", xlabel="parameters", ylabel="accuracy, %",
        title=f"ResNet-18, {setting['count']} units removed in each round (labels: round)",
    )  # fmt: skip
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.margins(y=0.12)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
