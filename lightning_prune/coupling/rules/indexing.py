"""Rules for operations that select entries by index: the indexed dimension is frozen, the others keep their labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_prune.coupling.rules.pointwise import tie_all
from lightning_prune.coupling.rules.registry import freeze_all, rule_for
from lightning_prune.coupling.symbols.aten import bound_arguments, op_name
from lightning_prune.coupling.symbols.channel_ids import Ids
from lightning_prune.coupling.symbols.reasons import public_name
from lightning_prune.coupling.tracing.constant_values import (
    all_nonzero_masked,
    is_nonzero_masked,
    label_constant,
    nonzero_masked,
)
from lightning_prune.coupling.tracing.trace import Labels
from lightning_prune.coupling.tracing.tracer import Tracer
from lightning_prune.network.tensors import tensors_in

_BY_NUMBER = "picks entries of it by number"
_AS_INDEX = "uses its values as an index"


@rule_for("index", "_unsafe_index")
def _index(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, indices = args[:2]
    tracer.set_labels(out, _indexed(tracer, source, indices, out.dim()))


def _indexed(tracer: Tracer, source: Tensor, indices: Sequence[Tensor | None], count: int) -> Labels:
    """Labels of ``source[indices]``, which has ``count`` dimensions."""
    taken: list[int] = []
    broadcast = dim = 0
    for index in indices:
        if index is None:
            dim += 1
            continue
        tracer.freeze(index, tracer.forward_reason(_AS_INDEX))
        mask = index.dtype in (torch.bool, torch.uint8)
        covered = index.dim() if mask else 1
        taken.extend(range(dim, dim + covered))
        broadcast = max(broadcast, 1 if mask else index.dim())
        dim += covered
    tracer.freeze(source, tracer.forward_reason(_BY_NUMBER), taken)
    labels = tracer.labels(source)
    kept: Labels = [label for d, label in enumerate(labels) if d not in taken]
    adjacent = not taken or taken == list(range(taken[0], taken[-1] + 1))
    where = taken[0] if taken and adjacent else 0
    result: Labels = [*kept[:where], *[None] * broadcast, *kept[where:]]
    if len(result) != count:
        tracer.freeze(source, tracer.forward_reason(_BY_NUMBER))
        return [None] * count
    return result


@rule_for("index_put", "_index_put_impl", "_unsafe_index_put")
def _index_put(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    target, indices, values = args[:3]
    covered = sum(1 if i is None or i.dtype not in (torch.bool, torch.uint8) else i.dim() for i in indices)
    sizes = [i.dim() for i in indices if i is not None and i.dtype not in (torch.bool, torch.uint8)]
    masks = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
    broadcast = max([*sizes, 1 if masks else 0])
    kept = sum(i is None for i in indices) + target.dim() - covered
    for back in range(
        1, min(values.dim(), target.dim() - covered) + 1
    ):  # the dimensions after the indices are aligned from the right
        label_constant(tracer, target, target.dim() - back, tracer.labels(values)[-back], writes=1)
    selected = _indexed(tracer, target, indices, broadcast + kept)
    labels = tracer.labels(target)
    for back, label in enumerate(reversed(tracer.labels(values)), start=1):
        target_label = selected[-back] if back <= len(selected) else None
        if values.shape[-back] > 1:
            tracer.tie(label, target_label)
        elif target_label is not None:
            labels = _mark_nonzero_masked(tracer, labels, target_label)
    if not values.dim():
        labels = all_nonzero_masked(tracer, labels)
    tracer.set_labels(out, labels)


def _mark_nonzero_masked(tracer: Tracer, labels: Labels, label: Ids) -> Labels:
    return [nonzero_masked(tracer, own) if own is label else own for own in labels]


@rule_for("index_select", "index_fill", "repeat_interleave", "unfold")
def _index_select(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, arguments = args[0], bound_arguments(func, args, kwargs)
    dim = arguments.get("dim", arguments.get("dimension"))
    if dim is None:  # the counts of repeat_interleave
        tracer.freeze(source, tracer.forward_reason(_AS_INDEX))
        return
    freeze_all(tracer, tensors_in(args[1:]), _AS_INDEX)
    tracer.freeze(source, tracer.forward_reason(_BY_NUMBER), [dim % source.dim()])
    labels = tracer.labels(source)
    labels[dim % source.dim()] = None
    labels.extend([None] * (out.dim() - len(labels)))
    if op_name(func) == "index_fill":
        labels = all_nonzero_masked(tracer, labels)
    tracer.set_labels(out, labels)


@rule_for("index_add", "index_copy", "index_reduce")
def _index_add(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    target, axis, index, source = args[:4]
    axis %= target.dim()
    tracer.freeze(index, tracer.forward_reason(_AS_INDEX))
    tracer.freeze(target, tracer.forward_reason(_BY_NUMBER), [axis])
    tracer.freeze(source, tracer.forward_reason(_BY_NUMBER), [axis])
    _write(tracer, func, target, source, {axis}, out)


@rule_for("gather")
def _gather(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, axis, index = args[:3]
    if not source.dim():
        return
    axis %= source.dim()
    tracer.freeze(source, tracer.forward_reason(_BY_NUMBER), [axis])
    tracer.freeze(index, tracer.forward_reason(_AS_INDEX), [axis])
    labels: Labels = [None] * out.dim()
    for dim, label in enumerate(tracer.labels(source)):
        if dim != axis and label is not None:
            own = tracer.labels(index)[dim]
            if own is not None or index.stride(dim) != 0 or index.shape[dim] != len(label):
                tracer.tie(label, own if own is None or len(own) == len(label) else None)
            labels[dim] = label if len(label) == out.shape[dim] else None
    tracer.set_labels(out, labels)


@rule_for("scatter", "scatter_add", "scatter_reduce")
def _scatter(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    target, axis, index = args[:3]
    source = args[3] if len(args) > 3 and isinstance(args[3], Tensor) and args[3].dim() else None
    axis %= max(target.dim(), 1)
    for tensor in (t for t in (target, index, source) if t is not None):
        tracer.freeze(tensor, tracer.forward_reason(_BY_NUMBER), [axis])
    for dim, label in enumerate(tracer.labels(index)):
        if dim != axis and index.stride(dim) != 0:
            tracer.tie(label, tracer.labels(target)[dim])
    if source is None:
        labels = tracer.labels(target)
        labels = [None if x is None or d == axis else nonzero_masked(tracer, x) for d, x in enumerate(labels)]
        tracer.set_labels(out, labels)
    else:
        _write(tracer, func, target, source, {axis}, out)


def _write(tracer: Tracer, func: Any, target: Tensor, source: Tensor, frozen: Iterable[int], out: Tensor) -> None:
    """Tie ``source`` to ``target``, into which it is written, along every dimension that is not ``frozen``."""
    writes = 1 if func._schema.name.endswith("_") else 0
    for dim, label in enumerate(tracer.labels(source)):
        if dim not in frozen:
            label_constant(tracer, target, dim, label, writes)
    labels = tracer.labels(target)
    for dim, label in enumerate(tracer.labels(source)):
        if dim in frozen:
            labels[dim] = None
        else:
            own = labels[dim]
            tracer.tie(own, label)
            nonzero = label is not None and is_nonzero_masked(tracer, label)
            labels[dim] = nonzero_masked(tracer, own) if nonzero and own is not None else own
    tracer.set_labels(out, labels)


@rule_for("masked_select", "take", "masked_scatter", "put", "bincount", "histc", "searchsorted", "isin")
def _flattened(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    freeze_all(tracer, tensors_in([args, kwargs]), f"picks or counts its values one by one ({public_name(func)})")


@rule_for("diagonal", "diag_embed", "rot90", "linalg_cross")
def _planes(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, arguments, name = args[0], bound_arguments(func, args, kwargs), op_name(func)
    count = source.dim()
    if name == "linalg_cross":
        dims = {arguments["dim"] % count}
    elif name == "rot90":
        dims = {dim % count for dim in arguments["dims"]}
    elif name == "diagonal":
        dims = {arguments["dim1"] % count, arguments["dim2"] % count}
    else:
        dims = {count - 1}
    tensors = list(tensors_in(args))
    for tensor in tensors:
        tracer.freeze(tensor, tracer.forward_reason(f"calls {public_name(func)} over the channels"), sorted(dims))
    others = [None if d in dims else tie_all(tracer, [tracer.labels(t)[d] for t in tensors]) for d in range(count)]
    if name in ("diagonal", "diag_embed"):
        others = [label for d, label in enumerate(others) if d not in dims]
        new = {count - 2} if name == "diagonal" else {arguments["dim1"] % out.dim(), arguments["dim2"] % out.dim()}
        for dim in sorted(new):
            others.insert(dim, None)
    tracer.set_labels(out, others)


@rule_for(
    "_local_scalar_dense", "_is_all_true", "_is_any_true", "is_nonzero", "equal", "is_same_size", "sym_size", "numel"
)
def _to_python(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    return None
