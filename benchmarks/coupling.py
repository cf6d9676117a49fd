"""One complete pruning call against Torch-Pruning, one core: python benchmarks/coupling.py [--small] [--only P].

Both get the same network, the same example (one image of 224 x 224, 299 for Inception) and the task to remove half of
every group's channels by magnitude. Ours is ``prune_once(network, example)``, which also tries the plan on a copy and
measures the network before and after. Theirs is the construction of a pruner and one step. It gets the output layers
by hand; for ViT widths rounded to the number of heads and ``hidden_dim`` corrected afterwards, as in its own benchmark
(with ``num_heads`` besides it leaves the attention and the stream alone). Auxiliary heads, which eval mode hides from
it, are off. Every network has an interpreter of its own, in which the tools prune copies of it in turns, after a
ResNet-18 each, so that neither pays for what only a first call does. A tool that has shown in a fork that it fails,
takes longer than the limit or leaves a network whose outputs have other shapes is not measured.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from common import zoo, zoo_halved
from common.children import in_child
from common.tables import RESULTS
from rich.console import Console
from rich.table import Column, Table
from torch import nn
from torchvision.models import VisionTransformer

import lightning_prune
from lightning_prune import prune_once
from lightning_prune.coupling import find_coupling
from lightning_prune.network.example_input import Example

EXTRA = ("fasterrcnn_resnet50_fpn", "fcos_resnet50_fpn")  # besides the classifiers
SMALL = (
    "resnet18", "resnet50", "mobilenet_v2", "densenet121", "googlenet", "shufflenet_v2_x1_0", "regnet_y_400mf",
    "convnext_tiny", "vit_b_32", "swin_t",
)  # fmt: skip
THEIR_HINTS = {  # besides the output layers, in their own benchmark of torchvision's networks
    "faster_rcnn": ["backbone.fpn", "roi_heads"],
}
TOOLS = ("ours", "theirs")


def ours(network: nn.Module, example: Any) -> None:
    prune_once(network, example)


def theirs(network: nn.Module, example: Any, ignored: list[nn.Module]) -> None:
    import torch_pruning

    attention = [module for module in network.modules() if isinstance(module, nn.MultiheadAttention)]
    pruner = torch_pruning.pruner.MagnitudePruner(
        network,
        list(example) if isinstance(example, tuple) else example,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=ignored,
        round_to=attention[0].num_heads if attention else None,
    )
    pruner.step()
    if isinstance(network, VisionTransformer):
        network.hidden_dim = network.conv_proj.out_channels


def once(tool: str, name: str, network: nn.Module, example: Any) -> dict[str, float]:
    """Seconds and the share of the parameters that remains; raises if the pruned network does not run."""
    network = copy.deepcopy(network)
    params = sum(parameter.numel() for parameter in network.parameters())
    patterns = zoo_halved.OUTPUTS[zoo.family(name)] + THEIR_HINTS.get(zoo.family(name), [])
    ignored = [m for path, m in network.named_modules() if any(fnmatchcase(path, p) for p in patterns)]
    call = partial(ours, network, example) if tool == "ours" else partial(theirs, network, example, ignored)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    with torch.no_grad():
        outputs = zoo.raw_outputs(network, example)
    expected = _shapes[name]
    found = [tuple(out.shape) for out in outputs]
    if found != expected:
        raise ValueError(f"the outputs have the shapes {found[:3]} instead of {expected[:3]}")
    return {
        "seconds": wall,
        "cpu_s": cpu,
        "kept": sum(parameter.numel() for parameter in network.parameters()) / params,
    }


_shapes: dict[str, list[tuple[int, ...]]] = {}  # made before the forks


def network_of(name: str) -> nn.Module:
    """The network in eval mode, without auxiliary heads."""
    network = zoo.build(name, "default").eval()
    for head in ("aux1", "aux2", "AuxLogits"):
        if hasattr(network, head):
            setattr(network, head, None)
            network.aux_logits = False
    return network


def measure(name: str, limit_s: float, repeats: int) -> dict[str, Any]:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for tool in TOOLS:
        warm_up(tool)
    network, example = network_of(name), zoo.inputs(name, "default", batch=1)
    _shapes[name] = [tuple(out.shape) for out in zoo.raw_outputs(network, example)]
    row: dict[str, Any] = {"name": name, "task": zoo.task(name)}
    row["params"] = sum(parameter.numel() for parameter in network.parameters())
    row["forward_s"] = round(min(_seconds(partial(zoo.run, network, example)) for _ in range(3)), 4)
    row["analysis_s"] = round(min(_seconds(partial(_analysis, network, example)) for _ in range(3)), 4)
    runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
    errors: dict[str, str | None] = dict.fromkeys(TOOLS)
    for tool in TOOLS:
        _, errors[tool] = in_child(partial(once, tool, name, network, example), limit_s)
    for number in range(repeats):
        for tool in TOOLS if number % 2 == 0 else TOOLS[::-1]:
            if errors[tool] is None and _wanted(runs[tool], repeats):
                runs[tool].append(once(tool, name, network, example))
    for tool in TOOLS:
        row[tool] = {
            "error": errors[tool],
            "seconds": round(statistics.median(run["seconds"] for run in runs[tool]), 3) if runs[tool] else None,
            "cpu_s": round(statistics.median(run["cpu_s"] for run in runs[tool]), 3) if runs[tool] else None,
            "runs": [round(run["seconds"], 3) for run in runs[tool]],
            "kept": round(runs[tool][0]["kept"], 4) if runs[tool] else None,
        }
        if errors[tool] is not None:
            row[tool]["seconds"] = None
    return row


def _wanted(runs: list[dict[str, float]], repeats: int) -> bool:
    """All repeats below 3 s a run, one above 10 s, three between."""
    longest = max((run["seconds"] for run in runs), default=0.0)
    return len(runs) < (repeats if longest < 3 else 1 if longest > 10 else min(repeats, 3))


def _analysis(network: nn.Module, example: Any) -> None:
    find_coupling(network, Example.of(example, network))


@torch.no_grad()
def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the networks that both can do, and how many each can."""
    both = [row for row in rows if all(row[tool]["seconds"] is not None for tool in TOOLS)]
    return {
        "networks": len(rows),
        "both": len(both),
        **{f"{tool}_done": sum(row[tool]["seconds"] is not None for row in rows) for tool in TOOLS},
        **{f"{tool}_s": round(sum(row[tool]["seconds"] for row in both), 2) for tool in TOOLS},
        **{f"{tool}_cpu_s": round(sum(row[tool]["cpu_s"] for row in both), 2) for tool in TOOLS},
        "ours_faster": sum(row["ours"]["seconds"] < row["theirs"]["seconds"] for row in both),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    columns = ("network", "forward s", "analysis s", "ours s", "Torch-Pruning s", "ratio", "ours kept", "theirs kept")
    result = Table(*(Column(name, no_wrap=True) for name in columns), "failures", box=None)

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    for row in rows:
        mine, other = row["ours"], row["theirs"]
        ratio = other["seconds"] / mine["seconds"] if mine["seconds"] and other["seconds"] else None
        failures = [f"{tool}: {row[tool]['error']}" for tool in TOOLS if row[tool]["error"]]
        result.add_row(
            row["name"], *(number(row[key], ".3f") for key in ("forward_s", "analysis_s")),
            *(number(value, ".2f") for value in (mine["seconds"], other["seconds"], ratio)),
            *(number(tool["kept"], ".3f") for tool in (mine, other)), "; ".join(failures),
        )  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="ten networks")
    parser.add_argument("--only", default="*", help="pattern of names; several with commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for one run")
    parser.add_argument("--json", type=Path, default=RESULTS / "coupling.json")
    options = parser.parse_args()
    wanted: Callable[[str], bool] = lambda name: any(fnmatchcase(name, p) for p in options.only.split(","))  # noqa: E731
    names = [name for name in zoo.names() if zoo.task(name) == "classification"] + list(EXTRA)
    names = [name for name in names if wanted(name) and (name in SMALL or not options.small)]
    rows: list[dict[str, Any]] = []
    console = Console(width=max(Console().width, 150))
    for name in names:
        row, error = in_child(partial(measure, name, options.limit, options.repeats), 3600, fresh=True)
        if error is not None:
            raise RuntimeError(f"{name}: {error}")
        rows.append(row)
        figures = ", ".join(f"{tool} {rows[-1][tool]['seconds'] or rows[-1][tool]['error']}" for tool in TOOLS)
        console.print(f"{len(rows):3}/{len(names)} {name}: {figures}", highlight=False)
        packages = ("torch", "torchvision", "lightning-prune", "torch-pruning")
        answer = {"versions": {p: version(p) for p in packages}, "totals": totals(rows), "rows": rows}
        options.json.write_text(json.dumps(answer, indent=1) + "\n")
    console.print(table(rows))
    console.print(totals(rows))


def warm_up(tool: str) -> None:
    """What only a first call pays for: imports that happen late."""
    network = torchvision.models.get_model("resnet18", weights=None).eval()
    example = torch.randn(1, 3, 64, 64)
    if tool == "ours":
        ours(network, example)
    else:
        theirs(network, example, [network.fc])


assert lightning_prune.__version__

if __name__ == "__main__":
    main()
