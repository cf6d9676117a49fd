"""Rules for slices, splits and padding."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_prune.coupling.rules.registry import rule_for
from lightning_prune.coupling.symbols.channel_ids import NO_CHANNEL, Ids
from lightning_prune.coupling.symbols.traced_ints import TracedInt
from lightning_prune.coupling.tracing.constant_values import all_nonzero_masked
from lightning_prune.coupling.tracing.trace import Part
from lightning_prune.coupling.tracing.tracer import ATTENTION, Tracer
from lightning_prune.network.tensors import tensors_in


@rule_for("select", "unbind")
def select(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Rule for the selection of one index of a dimension, or of each of them."""
    source = args[0]
    axis = _axis(func, args, kwargs) % source.dim()
    first = args[2] if func._schema.name == "aten::select" else 0
    for index, result in enumerate(tensors_in(out), start=first):
        parts = []
        for part in tracer.parts(source):
            remaining: Part | None = part
            if axis in part.dims:
                rows = np.split(part.ids, source.shape[axis], axis=part.dims.index(axis))
                remaining = part.narrowed(rows[index])
                if remaining is None:
                    tracer.channel_ids.freeze(part.ids, tracer.forward_reason("picks single channels by number"))
                else:
                    tracer.balance(rows, tracer.where)
            parts += [remaining.moved(lambda dim: dim - (dim > axis))] if remaining is not None else []
        tracer.set_parts(result, parts)
        tracer.record_shape(result, cut=True)


def _axis(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    names = [argument.name for argument in func._schema.arguments]
    axis: int = {**dict(zip(names, args, strict=False)), **kwargs}.get("dim", 0)
    return axis


@rule_for("slice", "narrow")
def take(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Rule for a range of a dimension."""
    source = args[0]
    axis = _axis(func, args, kwargs) % source.dim()
    start, step = (args[2] if len(args) > 2 else 0) or 0, args[4] if len(args) > 4 else 1
    size = source.shape[axis]
    start = min(start + size if start < 0 else start, size)
    parts = []
    for part in tracer.parts(source):
        cut = axis in part.dims and out.shape != source.shape
        remaining = _cut(tracer, part, axis, (start, out.shape[axis]), step) if cut else part
        parts += [remaining] if remaining is not None else []
    tracer.set_parts(out, parts)
    tracer.record_shape(out, cut=True)


def _cut(tracer: Tracer, part: Part, axis: int, where: tuple[int, int], step: int) -> Part | None:
    """The part of ``part`` in a slice: (start, size) along ``axis``; None where it is frozen."""
    start, size = where
    along = part.dims.index(axis)
    total = part.ids.shape[along]
    ids = part.ids.take(range(start, start + size * step, step), axis=along)
    before = part.ids.take(range(start), axis=along)
    several = size > 1 or part.ids.ndim > 1
    equal = total % max(size, 1) == 0 and start % max(size, 1) == 0 and several
    kept = [number for number in tracer.call_integers if isinstance(number, TracedInt)]
    if equal:
        kept = [number for number in kept if tracer.trace.size_equations.is_attribute(number)]
    if step == 1 and size and _follows(tracer, kept, before, ids, along):
        pass
    elif step == 1 and size and equal:
        tracer.balance(np.split(part.ids, total // size, axis=along), tracer.where)
    elif step > 1 and size * step == total and start < step and several:  # as rotary embeddings split pairs
        tracer.balance([part.ids.take(range(n, total, step), axis=along) for n in range(step)], tracer.where)
    else:
        stepping = f" with a step of {step}" if step != 1 else ""
        what = f"slices {size} of {total} channels{stepping}, written as a number"
        tracer.channel_ids.freeze(part.ids.ravel(), tracer.forward_reason(what))
        return None
    return part.narrowed(ids)


def _follows(tracer: Tracer, known: list[TracedInt], before: Ids, ids: Ids, along: int) -> bool:
    """Bind the start or the end of a slice to the channels before it; return whether one of ``known`` matches."""
    edges = [_one_row(before, along), _one_row(np.concatenate([before, ids], axis=along), along)]
    bound = [(edge, number) for edge in edges for number in known if int(number) == len(edge) > 0]
    for edge, number in bound:
        tracer.bind_size(number, edge)
    return bool(bound)


def _one_row(ids: Ids, along: int) -> Ids:
    """The ids along one axis, at the first index of all others."""
    return np.moveaxis(ids, along, -1).reshape(-1, ids.shape[along])[0] if ids.size else ids.ravel()


@rule_for("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")
def split(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Rule for the split of a dimension into pieces."""
    source = args[0]
    axis = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % source.dim()
    sizes = [part.shape[axis] for part in out]
    pieces: list[list[Part]] = [[] for _ in sizes]
    for part in tracer.parts(source):
        if axis not in part.dims or len(sizes) == 1:
            for piece in pieces:
                piece.append(part)
            continue
        along = part.dims.index(axis)
        ids = np.split(part.ids, np.cumsum(sizes)[:-1], axis=along)
        _bind_sizes(tracer, sizes, ids, along)
        for piece, own in zip(pieces, ids, strict=True):
            remaining = part.narrowed(own)
            piece += [remaining] if remaining is not None else []
    for result, piece in zip(out, pieces, strict=True):
        tracer.set_parts(result, piece)
        tracer.record_shape(result, cut=True)


def _bind_sizes(tracer: Tracer, sizes: list[int], ids: list[Ids], along: int) -> None:
    """Record how a split follows the channels: into equal parts, or by sizes that are attributes of modules."""
    if tracer.call_name == ATTENTION and sizes[1:] == [2 * sizes[0]]:  # the query, and key and value together
        tracer.balance(np.split(np.concatenate(ids, axis=along), 3, axis=along), tracer.where)
        return
    listed = tracer.call_name != "chunk" and list(map(int, tracer.call_integers[: len(sizes)])) == sizes
    one_size = tracer.call_name == "split" and tracer.call_integers[:1] and int(tracer.call_integers[0]) == sizes[0]
    numbers = tracer.call_integers[: len(sizes)] if listed else tracer.call_integers[:1] if one_size else []
    for number, own in zip(numbers, ids, strict=False):
        if isinstance(number, TracedInt):
            tracer.bind_size(number, _one_row(own, along))
    if len(set(sizes)) == 1:
        tracer.balance(ids, tracer.where)
        return
    reason = tracer.forward_reason(f"splits into {tuple(sizes)}, written as numbers")
    for n, own in enumerate(ids):
        if not (n < len(numbers) and isinstance(numbers[n], TracedInt)) and not (one_size and not listed):
            tracer.channel_ids.freeze(own.ravel(), reason)


@rule_for("constant_pad_nd", "pad")
def _pad(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, padding = args[0], list(args[1])
    labels = tracer.labels(source)
    for pair in range(len(padding) // 2):
        before, after = padding[2 * pair : 2 * pair + 2]
        dim = source.dim() - 1 - pair
        label = labels[dim]
        if label is None:
            continue
        if before < 0 or after < 0:
            tracer.freeze(
                source, tracer.forward_reason("crops the channels by padding them with a negative number"), [dim]
            )
            labels[dim] = None
        else:
            labels[dim] = np.concatenate([np.full(before, NO_CHANNEL), label, np.full(after, NO_CHANNEL)])
    if len(args) > 2 and args[2]:
        labels = all_nonzero_masked(tracer, labels)
    tracer.set_labels(out, labels)
