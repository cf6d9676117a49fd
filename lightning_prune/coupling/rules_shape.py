"""How channels flow through operations that only rearrange: views, permutations, slices and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_prune.coupling.rules import rule_for, rule_of
from lightning_prune.coupling.slots import FIXED, Ids
from lightning_prune.coupling.trace import Labels, Tracer, tensors_in


@rule_for("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "flatten", "unflatten")
def _reshape(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    if source.numel() == 0 and source.shape != out.shape:
        tracer.freeze(source, "a reshape while it is empty")
    else:
        tracer.set_labels(out, reshaped(tracer, tracer.labels(source), source.shape, out.shape))
        tracer.same_parameter(source, out)
    tracer.trace.reshapes.append((tuple(out.shape), tracer.labels(out)))


def is_reshape(func: Any) -> bool:
    """Whether ``Trace.reshapes`` has an entry for each call of this ATen overload."""
    return rule_of(func) is _reshape


def reshaped(tracer: Tracer, labels: Labels, before: Sequence[int], after: Sequence[int]) -> Labels:
    """Labels behind a reshape, block by block of equal products."""
    result: Labels = [None] * len(after)
    for old, new in _blocks(before, after):
        block = _reshape_block(tracer, [labels[d] for d in old], [before[d] for d in old], [after[d] for d in new])
        for dim, label in zip(new, block, strict=True):
            result[dim] = label
    return result


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of dimensions (of size > 1) that hold the same elements on both sides."""
    old = [d for d, size in enumerate(before) if size != 1]
    new = [d for d, size in enumerate(after) if size != 1]
    blocks = []
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        a, b = before[left[0]], after[right[0]]
        while a != b:
            if a < b:
                left.append(old.pop(0))
                a *= before[left[-1]]
            else:
                right.append(new.pop(0))
                b *= after[right[-1]]
        blocks.append((left, right))
    return blocks


def _reshape_block(tracer: Tracer, labels: Labels, old: list[int], new: list[int]) -> Labels:
    labelled = [dim for dim, label in enumerate(labels) if label is not None]
    if not labelled:
        return [None] * len(new)
    if old == new:  # a single dimension, unchanged
        return labels
    if len(labelled) > 1:
        for dim in labelled:
            tracer.slots.freeze(labels[dim], "a reshape merges it with other channels")  # type: ignore[arg-type]
        return [None] * len(new)
    (dim,) = labelled
    spread = np.expand_dims(labels[dim], [d for d in range(len(old)) if d != dim])  # type: ignore[arg-type]
    return _along_new_dims(tracer, np.broadcast_to(spread, old).reshape(new))


def _along_new_dims(tracer: Tracer, ids: Ids) -> Labels:
    """One label for a block of ids: along the last dimension in which they vary; ties over the others."""
    varying = [d for d in range(ids.ndim) if not (ids == ids.take([0], axis=d)).all()]
    if not varying:  # one channel spread over several positions
        varying = [ids.ndim - 1]
    rows = np.moveaxis(ids, varying[-1], -1).reshape(-1, ids.shape[varying[-1]])
    for row in rows[1:] if len(varying) > 1 else ():
        tracer.tie(rows[0], row)
    labels: Labels = [None] * ids.ndim
    labels[varying[-1]] = rows[0]
    return labels


@rule_for("t", "transpose", "permute", "numpy_T", "movedim", "swapaxes")
def _permute(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    order = list(range(source.dim()))
    if "permute" in func._schema.name:
        order = [dim % source.dim() for dim in args[1]]
    elif "transpose" in func._schema.name:
        a, b = (dim % source.dim() for dim in args[1:3])
        order[a], order[b] = order[b], order[a]
    else:
        order.reverse()
    labels = tracer.labels(source)
    tracer.set_labels(out, [labels[dim] for dim in order])
    tracer.same_parameter(source, out)


@rule_for("expand")
def _expand(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    new = out.dim() - source.dim()
    tracer.set_labels(out, [None] * new + tracer.labels(source))


@rule_for("repeat")
def _repeat(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    labels = [None] * (out.dim() - args[0].dim()) + tracer.labels(args[0])
    times = args[1]
    tracer.set_labels(out, [None if ids is None else np.tile(ids, n) for ids, n in zip(labels, times, strict=True)])


@rule_for("slice", "select", "narrow", "unbind")
def _slice(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    names = [argument.name for argument in func._schema.arguments]
    axis = {**dict(zip(names, args, strict=False)), **kwargs}.get("dim", 0) % source.dim()
    labels = tracer.labels(source)
    for result in tensors_in(out):
        if result.shape == source.shape:
            tracer.set_labels(result, labels)
            continue
        tracer.freeze(source, "indexed or sliced by a number", [axis])
        kept = [label if dim != axis else None for dim, label in enumerate(labels)]
        if result.dim() < source.dim():
            kept.pop(axis)
        tracer.set_labels(result, kept)


@rule_for("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")
def _split(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    axis = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % source.dim()
    label = tracer.labels(source)[axis]
    sizes = [part.shape[axis] for part in out]
    parts: Labels = [None] * len(sizes)
    if label is not None:
        parts = list(np.split(label, np.cumsum(sizes)[:-1]))
        if len(set(sizes)) == 1:  # `chunk` divides what is left evenly, so each part has to lose as much
            for part in parts[1:]:
                tracer.tie(parts[0], part)
        else:
            tracer.slots.freeze(label, f"split into {tuple(sizes)}, written as numbers")
    for part, ids in zip(out, parts, strict=True):
        labels = tracer.labels(source)
        labels[axis] = ids
        tracer.set_labels(part, labels)


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
            tracer.freeze(source, "cropped along the channels", [dim])
            labels[dim] = None
        else:
            labels[dim] = np.concatenate([np.full(before, FIXED), label, np.full(after, FIXED)])
    tracer.set_labels(out, labels)
