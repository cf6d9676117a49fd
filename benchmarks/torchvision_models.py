"""Every network of torchvision, pruned by one call without hints: python benchmarks/torchvision_models.py [--only P].

Each network runs in its own process with a time limit, one after the other. See ``zoo_check.check`` for what is
tried and ``zoo_halved.halved`` for the reference that the parameters are compared with.
"""

import argparse
import json
import re
import warnings
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from common import zoo, zoo_check
from common.children import in_child
from common.tables import RESULTS
from rich.console import Console
from rich.table import Column, Table

import lightning_prune

LIMIT_S = 600
NOTE = f"""\
`prune_once(model, inputs)` without any other argument on the {len(zoo.names())} non-quantised networks of torchvision:
half of every group of channels goes. Written by `python benchmarks/torchvision_models.py`.

- groups: groups of channels that gave some up
- prunable: share of the parameters in tensors of which at least one dimension lost something
- kept, halved: share of the parameters that remains, and what is left where every dimension but the network's inputs
  and outputs is halved, counted from module types and weight shapes (`zoo_halved.halved`)
- error: largest difference between the outputs of the pruned network and of a copy in which the same channels are zero,
  relative to the largest output; raw outputs of the heads for detectors
- exact groups: the same where only groups are pruned that no norm across channels touches, if others exist
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="pattern of names, such as 'resnet*'; several with commas")
    parser.add_argument("--flavour", choices=zoo.FLAVOURS, default="small", help="size of the inputs")
    parser.add_argument("--json", type=Path, default=RESULTS / "torchvision_models.json")
    parser.add_argument("--markdown", type=Path, help="beside the JSON by default")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    names = [name for name in zoo.names() if any(fnmatchcase(name, p) for p in options.only.split(","))]
    rows: list[dict[str, Any]] = []
    console = Console(width=max(Console().width, 150))
    for name in names:
        row, error = in_child(partial(zoo_check.check, name, options.flavour), LIMIT_S)
        row = {"name": name, "error": error} if row is None else row
        rows.append(row)
        console.print(f"{len(rows):3}/{len(names)} {name}: {status(row)}, {row.get('wall_s', 0)} s", highlight=False)
        write(options.json, options.markdown or options.json.with_suffix(".md"), rows)
    console.print(table(rows))
    console.print(f"{sum(not zoo_check.problems(row) for row in rows)} of {len(rows)} networks pass all checks")


def status(row: dict[str, Any]) -> str:
    found = zoo_check.problems(row)
    return "; ".join(found) if found else f"kept {row['kept']:.3f} of {row['halved']:.3f}"


def table(rows: list[dict[str, Any]]) -> Table:
    columns = ("network", "groups", "prunable", "kept", "halved", "error", "exact groups", "s")
    result = Table(*(Column(name, no_wrap=True) for name in columns), "problems", box=None)
    for row in rows:
        result.add_row(row["name"], *_figures(row), "; ".join(zoo_check.problems(row)))
    return result


def write(json_file: Path, markdown: Path, rows: list[dict[str, Any]]) -> None:
    versions = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "lightning_prune": lightning_prune.__version__,
    }
    good = sum(not zoo_check.problems(row) for row in rows)
    json_file.write_text(json.dumps({"versions": versions, "as_should_be": good, "rows": rows}, indent=1) + "\n")
    if str(json_file) == "/dev/null":
        return
    lines = ["# The networks of torchvision", "", NOTE, f"{good} of {len(rows)} networks pass all checks.", ""]
    lines += [f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.", ""]
    lines += ["| network | groups | prunable | kept | halved | error | exact groups | s | frozen, and why | problems |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|--:|---|---|"]
    for row in rows:
        cells = [row["name"], *_figures(row), frozen(row), "; ".join(zoo_check.problems(row))]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    markdown.write_text("\n".join(lines) + "\n")


def frozen(row: dict[str, Any]) -> str:
    """Reasons, the number of groups for each and the first of them; modules and sizes in them as of the first."""
    alike: dict[str, tuple[str, list[str]]] = {}
    for reason, names in row.get("frozen", {}).items():
        kind = re.sub(r"^'[^']+': |\d+", "", reason)
        alike.setdefault(kind, (reason, []))[1].extend(names)
    return "<br>".join(
        f"{reason}: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
        for reason, names in alike.values()
    )


def _figures(row: dict[str, Any]) -> list[str]:
    def number(key: str, form: str) -> str:
        return "" if row.get(key) is None else format(row[key], form)

    return [
        number("groups", "d"), number("prunable", ".3f"), number("kept", ".3f"), number("halved", ".3f"),
        number("relative_error", ".0e"), number("exact_error", ".0e"), number("prune_s", ".1f"),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
