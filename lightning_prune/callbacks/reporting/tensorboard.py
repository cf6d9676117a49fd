"""TensorBoard: layout of the CUSTOM SCALARS tab, and histograms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

BINS = 64  # TensorBoard displays 30

_PREFIX = "(.+-)?"  # of TensorBoardLogger(prefix=...)


def layout(monitor: str | None) -> dict[str, dict[str, list[Any]]]:
    """Layout of the CUSTOM SCALARS tab: curves by chart; names are regular expressions."""

    def chart(*names: str) -> list[Any]:
        return ["Multiline", [f"{_PREFIX}{name}$" for name in names]]

    sparsity = "pruning/sparsity(/.+)?"
    metric = {} if monitor is None else {f"{monitor} and sparsity": chart(sparsity, re.escape(monitor))}
    return {
        "Pruning": {
            **metric,
            "sparsity and schedule (fractions)": chart(sparsity, "pruning/fraction(/.+)?"),
            "parameters": chart("pruning/parameters", "pruning/nonzero_parameters"),
            "MACs of one example": chart("pruning/macs"),
        },
        "Layers": {
            "width (channels)": chart("width/.+"),
            "sparsity of the weights (fraction)": chart("sparsity/.+"),
        },
    }


def add_histograms(writer: SummaryWriter, kind: str, suffix: str, values: Mapping[str, Tensor], step: int) -> None:
    """Add a histogram of all finite ``values`` as ``kind/all``, and one for each name as ``kind/name``."""
    finite = {name: tensor[torch.isfinite(tensor)].float().cpu() for name, tensor in values.items()}
    if finite:
        _add_histogram(writer, f"{kind}/all{suffix}", torch.cat(list(finite.values())), step)
    for name, tensor in finite.items():
        _add_histogram(writer, f"{kind}/{name}", tensor, step)


def _add_histogram(writer: SummaryWriter, tag: str, values: Tensor, step: int) -> None:
    """``writer.add_histogram`` with equal bins, which is fast for millions of weights."""
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    bins = BINS if high > low else 1
    limits = torch.linspace(low, high, bins + 1, dtype=torch.float64)[1:]
    counts = torch.histc(values, bins, low, high) if bins > 1 else torch.tensor([float(len(values))])
    total, squares = float(values.sum(dtype=torch.float64)), float(values.square().sum(dtype=torch.float64))
    writer.add_histogram_raw(tag, low, high, len(values), total, squares, limits.tolist(), counts.tolist(), step)
