"""Inspection of a pruned file: sizes, changed shapes and attributes, removed modules and pruning events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_prune.checkpoint.manifest import manifest_in, manifest_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class Inspection:
    """Pruning that is recorded in a file.

    Attributes:
        shapes: Tensor name -> (dense shape, pruned shape), for the tensors that were pruned.
        attributes: Module name -> attribute -> value, for the integers that pruning has changed.
        values: Number of values in all tensors of the state dict: dense, pruned, pruned and nonzero.
        position: ``epoch`` and ``global_step`` of a Lightning checkpoint.
        events: State key of a pruning callback -> its history, one entry for each event.
        removed: Module name -> number of values that its state dict had, for the modules that were removed.
    """

    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    attributes: Mapping[str, Mapping[str, Any]]
    values: tuple[int, int, int]
    position: Mapping[str, int] = field(default_factory=dict)
    events: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    removed: Mapping[str, int] = field(default_factory=dict)


def inspect_file(path: str | Path) -> Inspection:
    """Read what was pruned from a Lightning checkpoint or a file with a state dict, with ``weights_only=True``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file contains neither, or cannot be read.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # what torch.load raises for other files depends on their first bytes
        raise ValueError(
            f"{str(path)!r} cannot be read: it is not a checkpoint, it is damaged, or it contains objects other than "
            "tensors, numbers, strings, lists and dicts"
        ) from error
    state_dict = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not state_dict or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise ValueError(f"{str(path)!r} is neither a Lightning checkpoint nor a file with a state dict")
    manifest = manifest_of(state_dict) or manifest_in(content)
    dense = manifest.get("dense_shapes", {})
    now = {name: tuple(value.shape) for name, value in state_dict.items()}
    built = {name: tuple(dense.get(name, shape)) for name, shape in now.items()}
    removed = {name: sum(map(prod, shapes.values())) for name, shapes in manifest.get("skipped", {}).items()}
    callbacks = content.get("callbacks", {})
    return Inspection(
        shapes={name: (built[name], now[name]) for name in now if built[name] != now[name]},
        attributes=manifest.get("attributes", {}),
        values=(
            sum(map(prod, built.values())) + sum(removed.values()),
            sum(map(prod, now.values())),
            sum(int(torch.count_nonzero(value)) for value in state_dict.values()),
        ),
        position={name: content[name] for name in ("epoch", "global_step") if name in content},
        events={
            key: state["history"]["events"]
            for key, state in callbacks.items()
            if isinstance(state, Mapping) and state.get("history", {}).get("events")
        },
        removed=removed,
    )


def show(found: Inspection, path: str | Path, console: Console | None = None) -> None:
    """Print an inspection as tables.

    Args:
        found: The inspection.
        path: The file, for the title.
        console: Where it is printed; standard output by default.
    """
    from rich.console import Console  # loading a network does not need it

    console = console or Console()
    built, now, nonzero = found.values
    where = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.position.items())
    console.print(f"{path}{f' ({where})' if where else ''}", highlight=False, soft_wrap=True)
    console.print(
        f"Values in the state dict: {built:,} (dense), {now:,} (pruned), {nonzero:,} nonzero", highlight=False
    )
    if found.shapes:
        console.print(_shapes(found.shapes))
    if found.removed:
        table = _table("Removed modules", "module", "values (dense)", folded="module")
        for name, count in found.removed.items():
            table.add_row(name, f"{count:,}")
        console.print(table)
    if found.attributes:
        table = _table("Changed attributes", "module", "attribute", "value", folded="module")
        for module, values in found.attributes.items():
            for name, value in values.items():
                table.add_row(module or "(the network)", name, str(value))
        console.print(table)
    for events in found.events.values():
        console.print(_history(events))
    if not (found.shapes or found.removed or found.events):
        console.print("No pruning is recorded in this file.")


def _shapes(shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> Table:
    """Vectors, such as biases and norms, are pruned with the tensors of more dimensions and are only counted."""
    wide = {name: pair for name, pair in shapes.items() if len(pair[0]) > 1} or shapes
    table = _table("Shapes", "tensor", "shape (dense)", "shape (pruned)", folded="tensor")
    for name, pair in wide.items():
        table.add_row(name, *(" x ".join(map(str, shape)) for shape in pair))
    if len(wide) < len(shapes):
        table.caption = f"and {len(shapes) - len(wide)} vectors"
    return table


def _history(events: list[dict[str, Any]]) -> Table:
    columns = ("event", "epoch", "step", "sparsity", "parameters", "nonzero", "MACs", "metrics before")
    table = _table("Events", *columns, folded="metrics before")
    for event in events:
        sizes = (event[key][1] for key in ("parameters", "nonzero", "macs"))
        number = f"{event['event']}{', rolled back' if event.get('rolled_back') else ''}"
        table.add_row(
            *(number, str(event["epoch"]), str(event["step"])),
            f"{event['sparsity']:.4f}",
            *("" if size is None else f"{size:,}" for size in sizes),
            ", ".join(f"{name} {value:.4g}" for name, value in event["metrics"].items()),
        )
    return table


def _table(title: str, *columns: str, folded: str = "") -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column != folded)
    return table
