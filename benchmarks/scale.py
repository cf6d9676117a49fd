"""How the cost of pruning grows with the network: python benchmarks/scale.py [--small] [--device cpu].

Stacks of eight linear layers with 1 M to 1 B parameters (``--small``: to 100 M). For each, in interpreters of its own:
a training step (batch of 8, SGD), the same with half of the weights masked, in turns; an event that masks half of the
weights, one that removes half of the channels, from analysis to surgery; and their peaks of memory beyond the network.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from common.provenance import in_words, provenance
from common.resources import child, forget_peak, in_use, peak, synchronise
from common.tables import RESULTS, markdown, page, show, write
from torch import nn

from lightning_prune import Scope, prune_once
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.criteria import Magnitude
from lightning_prune.pruners.weight_pruner import WeightPruner

LAYERS, BATCH, TURNS = 8, 8, 21
SIZES = (10**6, 10**7, 10**8, 10**9)
MB = 10**6


def stack(parameters: int, device: str) -> nn.Sequential:
    """So many parameters in equal layers, with random weights."""
    width = round((parameters / LAYERS) ** 0.5)
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        layer = nn.Linear(width, width, device="meta").to_empty(device=device)
        nn.init.zeros_(layer.bias)
        layer.weight.data.normal_(std=width**-0.5)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def width_of(network: nn.Sequential) -> int:
    return next(network.parameters()).shape[1]


def step(network: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> float:
    """Seconds of a training step."""
    synchronise()
    began = time.perf_counter()
    optimizer.zero_grad()
    network(inputs).square().mean().backward()
    optimizer.step()
    synchronise()
    return time.perf_counter() - began


def steps(parameters: int, device: str) -> dict[str, float]:
    """Seconds of a step, and how much longer a step with masks takes."""
    torch.manual_seed(0)
    network = stack(parameters, device)
    optimizer = torch.optim.SGD(network.parameters(), 1e-6)
    inputs = torch.randn(BATCH, width_of(network), device=device)
    pruner = WeightPruner(Magnitude(), Sparsity(0.5), Scope())
    pruner.apply(network, pruner.plan(network, None, 1.0), ())
    pairs = []
    for turn in range(TURNS + 1):
        plain = step(network, optimizer, inputs)
        keeper = pruner.enforcer(network)
        keeper.hold([optimizer])
        masked = step(network, optimizer, inputs)
        keeper.release()
        if turn > 0:
            pairs.append((plain, masked))
    return {
        "step_s": statistics.median(plain for plain, _ in pairs),
        "masked_step": statistics.median(masked / plain for plain, masked in pairs),
    }


def event(parameters: int, device: str, kind: str) -> dict[str, float]:
    """Seconds of one event, and its peak of memory beyond the network before it, in bytes."""
    torch.manual_seed(0)
    network = stack(parameters, device)
    example = torch.zeros(1, width_of(network), device=device)
    prune_once(stack(10**4, device), torch.zeros(1, 35, device=device), budget=Ratio(0.5))  # what is imported late
    give_back()
    forget_peak(device)
    before, began = in_use(device), time.perf_counter()
    if kind == "masks":
        pruner = WeightPruner(Magnitude(), Sparsity(0.5), Scope())
        pruner.prepare(network, None)
        pruner.apply(network, pruner.plan(network, None, 1.0), ())
    else:
        prune_once(network, example, budget=Ratio(0.5))
    synchronise()
    return {f"{kind}_s": time.perf_counter() - began, f"{kind}_bytes": max(0, peak(device) - before)}


def give_back() -> None:
    """To the system, what glibc keeps of freed memory: it would be taken first, and not be seen."""
    gc.collect()
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


def row_of(parameters: int, device: str) -> dict[str, Any]:
    """All figures of one size."""
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in stack(parameters, "meta").parameters())}
    row["network_bytes"] = 4 * row["parameters"]
    row |= child(partial(steps, parameters, device))
    for kind in ("masks", "channels"):
        row |= child(partial(event, parameters, device, kind), exact_memory=True)
    print(f"{row['parameters']:,}", file=sys.stderr, flush=True)
    return row


TITLE = "What pruning costs as the network grows"
HEADINGS = [
    "parameters", "network", "step", "step with masks", "event, masks", "memory, masks", "event, channels",
    "memory, channels",
]  # fmt: skip


def cells_of(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['parameters']:,}", f"{row['network_bytes'] / MB:,.0f} MB", f"{1000 * row['step_s']:,.1f} ms",
        f"{row['masked_step']:.3f} x", f"{row['masks_s']:.3f} s", f"{row['masks_bytes'] / MB:,.0f} MB",
        f"{row['channels_s']:.3f} s", f"{row['channels_bytes'] / MB:,.0f} MB",
    ]  # fmt: skip


def text(content: dict[str, Any], figure: str) -> str:
    """The page beside the JSON file."""
    table = markdown(HEADINGS, [cells_of(row) for row in content["rows"]])
    return page(TITLE, table, f"![Cost against size]({figure})", f"On {content['device']}. {in_words(content)}")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Times, memory and what masks add to a step, against the number of parameters."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.5), layout="constrained")
    sizes = [row["parameters"] for row in rows]
    for name, label in (("step_s", "a training step"), ("masks_s", "masks"), ("channels_s", "channels")):
        left.plot(sizes, [row[name] for row in rows], "o-", label=label)
    for name, label in (("network_bytes", "the network"), ("masks_bytes", "masks"), ("channels_bytes", "channels")):
        middle.plot(sizes, [max(row[name], 1) / MB for row in rows], "o-", label=label)
    left.set(xscale="log", yscale="log", xlabel="parameters", ylabel="seconds", title="time of an event")
    middle.set(xscale="log", yscale="log", xlabel="parameters", ylabel="MB", title="peak memory of an event")
    right.plot(sizes, [row["masked_step"] for row in rows], "o-", label="with masks")
    right.axhline(1, color="tab:gray", linestyle="--", label="without")
    right.set(xscale="log", xlabel="parameters", ylabel="ratio", title="time of a step, half of the weights masked")
    for axes in (left, middle, right):
        axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="to 100 M parameters")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    path = options.json or RESULTS / ("scale_small.json" if options.small else "scale.json")
    began = time.perf_counter()
    rows = [row_of(size, options.device) for size in SIZES[: 3 if options.small else None]]
    content = {
        **provenance(device=options.device), "seconds": round(time.perf_counter() - began, 1),
        "device": options.device, "rows": rows,
    }  # fmt: skip
    draw(rows, path.with_suffix(".png"))
    write(path, content, text(content, path.with_suffix(".png").name))
    show(TITLE, HEADINGS, [cells_of(row) for row in rows])


if __name__ == "__main__":
    main()
