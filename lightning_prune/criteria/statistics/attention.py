"""Queries, keys and values of ``nn.MultiheadAttention``, which are not the output of any submodule.

They are computed again from the arguments of the layer. Their gradients are those of the matrix products that read
``in_proj_weight``, found in the autograd graph between the output of the layer and its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import functional as F

_PRODUCTS = ("Addmm", "Mm", "Bmm", "Baddbmm", "Linear")  # a compiled network is a single node


@torch.no_grad()
def projections(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Queries, keys and values that ``layer`` computes from its arguments, each (positions, examples, dimensions)."""
    assert isinstance(layer, nn.MultiheadAttention)
    weights = layer.in_proj_weight.chunk(3)
    biases = [None] * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    found = []
    for source, weight, bias in zip(sources(args, kwargs), weights, biases, strict=True):
        batch = source if source.dim() == 3 else source.unsqueeze(1)
        ordered = batch.transpose(0, 1) if source.dim() == 3 and layer.batch_first else batch
        found.append(F.linear(ordered, weight, bias))
    return found


def sources(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Query, key and value among the arguments of ``nn.MultiheadAttention``."""
    missing = ("query", "key", "value")[len(args) :]
    return [*args[:3], *(kwargs[name] for name in missing)]


def products(output: Tensor, given: Iterable[Tensor], weight: Tensor) -> Iterator[tuple[Node, int]]:
    """The matrix products between ``given`` and ``output`` that read ``weight``, with the first part that each reads.

    Args:
        output: Output of the layer.
        given: Its inputs, where the search ends.
        weight: The weight, which may be split into parts.

    Returns:
        Pairs of autograd node and index of the first part; 0 for a product that reads the whole weight.
    """
    visited = {tensor.grad_fn for tensor in given}
    pending = [output.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        edges = node.next_functions
        pending += [below for below, _ in edges]
        parts = [_part(below, number, weight) for below, number in edges] if node.name().startswith(_PRODUCTS) else []
        yield from ((node, part) for part in parts if part is not None)


def _part(node: Node | None, number: int, weight: Tensor) -> int | None:
    """Index of the part of ``weight`` that output ``number`` of ``node`` contains, through casts and views, or None."""
    part = 0
    while node is not None and len(node.next_functions) == 1:
        if "Split" in node.name():
            part = number
        node, number = node.next_functions[0]
    return part if getattr(node, "variable", None) is weight else None
