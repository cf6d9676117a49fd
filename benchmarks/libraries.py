"""Networks of timm, transformers, segmentation_models_pytorch and monai: python benchmarks/libraries.py [--only P].

``prune_once(network, inputs)`` halves every group of channels, without another argument. Then the network has to give
the outputs of a copy in which the same channels are zero, and to take a step of training. Where a norm runs over the
channels, removing is not the same as masking; there, a second pruning leaves such groups alone. Of timm it is a small
network from each of its modules. Libraries that are not installed are left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.children import in_child
from common.library_networks import Build, networks
from common.provenance import in_words, provenance
from common.quiet import quiet
from common.tables import RESULTS, markdown, page, write
from common.zoo_check import LARGEST_ERROR, scope_of_exact_groups
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_prune import Report, prune_once
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import tensors_in
from lightning_prune.surgery.apply import zero_removed

LIMIT_S = 600
Prune = Callable[..., Report]


def check(build: Build, prune: Prune = prune_once) -> dict[str, Any]:
    """What pruning one network gives; ``problems`` lists what does not hold afterwards."""
    torch.manual_seed(0)
    network, inputs = build()
    noisy(network.eval())
    before = copy.deepcopy(network)
    row: dict[str, Any] = {"params": parameters(network), "problems": []}
    began = time.perf_counter()
    report = prune(network, inputs)
    row["seconds"] = round(time.perf_counter() - began, 2)
    row |= {
        "kept": round(parameters(network) / row["params"], 3),
        "groups": len(report.widths),
        "frozen": dict(Counter(report.frozen.values())),
        "inexact": len(report.inexact),
        "error": None,
    }
    outputs_of(network, inputs)  # also where they must differ from those with zeros
    if not report.inexact:
        row["error"] = error_of(network, before, inputs, report)
    else:
        again = copy.deepcopy(before)
        try:
            report = prune(again, inputs, scope=scope_of_exact_groups(again, inputs))
        except ValueError as error:
            if "leaves no removable channels" not in str(error):
                raise
            row["no_exact_groups"] = True
        else:
            row["error"] = error_of(again, before, inputs, report)
    if row["error"] is not None and not row["error"] <= LARGEST_ERROR:
        row["problems"].append(f"relative error {row['error']:.0e}")
    train(network, inputs)
    return row


def error_of(pruned: nn.Module, dense: nn.Module, inputs: Any, report: Report) -> float:
    """``difference`` in float32 or, where that is large, in float64: it may be rounding."""
    error = difference(pruned, dense, inputs, report)
    if error <= LARGEST_ERROR:
        return error
    inputs = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, inputs)
    return difference(copy.deepcopy(pruned).double(), copy.deepcopy(dense).double(), inputs, report)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def noisy(network: nn.Module) -> None:
    """Biases, norms and their statistics that are not all alike, as after a training; nor all zero."""
    for parameter in network.parameters():
        if parameter.dim() <= 1 or not parameter.any():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]


def outputs_of(network: nn.Module, inputs: Any) -> list[Tensor]:
    """All floating-point tensors that a network returns, in whatever."""
    return [tensor for tensor in tensors_in(Example.of(inputs).run(network)) if tensor.is_floating_point()]


@torch.no_grad()
def difference(pruned: nn.Module, dense: nn.Module, inputs: Any, report: Report) -> float:
    """Largest difference between the outputs of ``pruned`` and of ``dense`` with zeros, relative to the largest output.

    Raises:
        ValueError: If outputs differ in shape, or are so alike that they prove nothing.
    """
    zero_removed(dense, report.plan)
    found, wanted = outputs_of(pruned, inputs), outputs_of(dense, inputs)
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in wanted]:
        raise ValueError("the shapes of the outputs changed")
    if not wanted or not all(tensor.isfinite().all() and tensor.std() > 1e-4 for tensor in wanted):
        raise ValueError("the masked network's outputs are not finite or all alike: they prove nothing")
    if not all(tensor.isfinite().all() for tensor in found):
        raise ValueError("outputs are no longer finite")
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


def train(network: nn.Module, inputs: Any) -> None:
    """A step of training: raises what does not go."""
    loss: Any = sum(tensor.float().square().mean() for tensor in outputs_of(network.train(), inputs))
    loss.backward()
    torch.optim.SGD(network.parameters(), 1e-4).step()


HEADINGS = ["network", "parameters", "groups", "kept", "error", "s", "frozen, and how many groups", "problems"]


def cells_of(row: dict[str, Any]) -> list[str]:
    if "kept" not in row:
        return [row["name"], *[""] * 6, "; ".join(row["problems"])]
    error = "" if row["error"] is None else f"{row['error']:.0e}"
    frozen = "<br>".join(f"{reason}: {count}" for reason, count in row["frozen"].items())
    return [
        row["name"], f"{row['params']:,}", str(row["groups"]), f"{row['kept']:.3f}", error, f"{row['seconds']:.1f}",
        frozen.replace("|", "/"), "; ".join(row["problems"]),
    ]  # fmt: skip


def text(content: dict[str, Any]) -> str:
    """The page beside the JSON file."""
    rows = content["rows"]
    parts = []
    for library in dict.fromkeys(row["library"] for row in rows):
        own = [row for row in rows if row["library"] == library]
        good = sum(not row["problems"] for row in own)
        parts += [
            f"## {library}",
            f"{good} of {len(own)} pass all checks.",
            markdown(HEADINGS, list(map(cells_of, own))),
        ]
    return page("The networks of other libraries", WHAT, *parts, in_words(content))


WHAT = """\
`prune_once(network, inputs)` without any other argument removes half of every group of channels. Written by
`python benchmarks/libraries.py`.

- kept: share of the parameters that remains
- error: largest difference between the outputs of the pruned network and of a copy in which the same channels are zero,
  relative to the largest output; in float64 where it is above 1e-5 in float32. Where a norm runs over the channels it
  is that of a second pruning without such groups, and empty where there are no others
- s: seconds for pruning, including the analysis; the machine was not otherwise idle"""


def earlier(file: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows that were measured before, by library and name."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"rows": []}
    return {(row["library"], row["name"]): {"commit": content["commit"], **row} for row in content["rows"]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="pattern of LIBRARY/NAME, such as 'timm/*vit*'; what else the file has stays")
    parser.add_argument("--json", type=Path, default=RESULTS / "libraries.json")
    options = parser.parse_args(arguments)
    quiet()
    torch.set_num_threads(1)
    libraries = networks()
    rows = earlier(options.json) if options.only else {}
    origin = provenance(*libraries, device="cpu")
    for library, builders in libraries.items():
        for name, build in builders.items():
            if not fnmatchcase(f"{library}/{name}", options.only or "*"):
                continue
            row, error = in_child(partial(check, build), LIMIT_S)
            row = {"library": library, "name": name, "commit": origin["commit"], **(row or {"problems": [error]})}
            rows[library, name] = row
            print(*cells_of(row)[:6], *row["problems"], sep="  ", file=sys.stderr, flush=True)
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows.values()))
    content = origin | {"commit": commits, "rows": list(rows.values())}
    write(options.json, content, text(content))
    print(f"{sum(not row['problems'] for row in rows.values())} of {len(rows)} networks pass all checks")


if __name__ == "__main__":
    main()
