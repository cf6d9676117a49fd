"""Removed = masked, for every convolutional classifier of torchvision: python benchmarks/exactness.py [--json FILE].

Each network gets random batch-norm statistics and loses half of the channels of every group with one call of
``prune_once`` and no further argument. The relative error compares it with a copy in which the same channels are zero.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import nn
from torchvision.models import get_model, list_models

import lightning_prune
from lightning_prune import prune_once
from lightning_prune.surgery import zero_removed

LEFT_OUT = ("vit", "swin", "maxvit", "regnet_y_128gf")  # transformers; the last is too large for a small machine


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = get_model(
        name, weights=None, **({"init_weights": False} if name in ("googlenet", "inception_v3") else {})
    )
    with torch.no_grad():
        for key, buffer in network.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif key.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network.eval()


@torch.no_grad()
def measure(name: str) -> dict[str, object]:
    size = 96 if name in ("inception_v3", "alexnet") else 64
    images = torch.randn(1, 3, size, size)
    network = build(name)
    masked = copy.deepcopy(network)
    report = prune_once(network, images)
    zero_removed(masked, report.plan)
    expected, found = masked(images), network(images)
    assert expected.abs().max() > 0
    return {
        "network": name,
        "groups": len(report.widths),
        "params_kept": round(report.after.params / report.before.params, 4),
        "macs_kept": round(report.after.macs / report.before.macs, 4),
        "relative_error": float((expected - found).abs().max() / expected.abs().max()),
        "inexact": sorted(set(report.inexact.values())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    names = [name for name in list_models(module=__import__("torchvision").models) if not name.startswith(LEFT_OUT)]
    table = Table(
        Column("network", no_wrap=True),
        "groups",
        "parameters kept",
        "MACs kept",
        "relative error",
        "why not exact",
        box=None,
    )
    rows = []
    for name in names:
        row = measure(name)
        rows.append(row)
        error = f"{row['relative_error']:.1e}"
        table.add_row(
            name,
            str(row["groups"]),
            str(row["params_kept"]),
            str(row["macs_kept"]),
            error,
            "".join(row["inexact"])[:10],
        )
    Console().print(table)
    versions = {"torch": torch.__version__, "lightning_prune": lightning_prune.__version__}
    options.json.write_text(json.dumps({"versions": versions, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
