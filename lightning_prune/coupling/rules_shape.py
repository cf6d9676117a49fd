"""How channels flow through operations that only rearrange: views, permutations, slices and padding."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from lightning_prune.coupling.numbers import Attribute, Number
from lightning_prune.coupling.rules import rule_for, rule_of
from lightning_prune.coupling.slots import FIXED, Ids
from lightning_prune.coupling.trace import ATTENTION, Part, Tracer, tensors_in


def is_reshape(func: Any) -> bool:
    """Whether ``Trace.sizes`` has an entry for the result of this ATen overload."""
    return rule_of(func) is _reshape


def is_cut(func: Any) -> bool:
    """Whether ``Trace.sizes`` has an entry for each part that this ATen overload cuts out."""
    return rule_of(func) in (_slice, _select, _split)


@rule_for("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "flatten", "unflatten")
def _reshape(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    before, after = _filled(source.shape), _filled(out.shape)
    if prod(before) != prod(after):
        tracer.freeze(source, "a reshape while it is empty")
    else:
        tracer.set_parts(out, reshaped(tracer, tracer.parts(source), before, after, _flexible(tracer, out)))
        tracer.same_parameter(source, out)
    _equate_shape(tracer, out)
    tracer.check_size(out)


def _filled(shape: Sequence[int]) -> list[int]:
    """A shape in which an empty batch holds one entry: a detector that has found nothing runs its heads on that."""
    return [max(size, 1) for size in shape]


def _equate_shape(tracer: Tracer, out: Tensor) -> None:
    """Note that the numbers that a shape was spelled with are the sizes of ``out``."""
    for dim, number in tracer.shape_given(out).items():
        if isinstance(number, Number):
            tracer.trace.book.equate(number, tracer.number(out, dim))


def _flexible(tracer: Tracer, out: Tensor) -> list[set[int]]:
    """Dimensions that can follow, the likelier ones first.

    Those written as -1, computed from a size, or kept by a module; then the first of those that a module keeps in one
    tuple, as decoders keep (channels, height, width).
    """
    given = tracer.shape_given(out)
    if not given:
        return []
    entries = [
        dim
        for dim, number in given.items()
        if isinstance(number, Number)
        and isinstance(number.expression, Attribute)
        and number.expression.index is not None
    ]
    written = {dim for dim, number in given.items() if not isinstance(number, Number)}
    return [set(range(out.dim())) - written - set(entries), set(entries[:1])]


def reshaped(
    tracer: Tracer,
    parts: Sequence[Part],
    before: Sequence[int],
    after: Sequence[int],
    flexible: Sequence[Collection[int]] = (),
) -> list[Part]:
    """Parts behind a reshape.

    Args:
        tracer: Notes ties.
        parts: What is there before.
        before: Shape before.
        after: Shape behind.
        flexible: Dimensions behind that may become smaller, the likelier ones first: where channels are spread over
            several, one of these is taken for the channels, else the last.
    """
    blocks = _blocks(before, after)
    moved = [[before[d] for d in old] != [after[d] for d in new] for old, new in blocks]
    kept = [_merged(tracer, part, blocks, moved) for part in parts]
    shared = [sum(not set(old).isdisjoint(part.dims) for part in kept) > 1 for old, _ in blocks]
    result = []
    for part in kept:
        hit = [i for i, (old, _) in enumerate(blocks) if not set(old).isdisjoint(part.dims)]
        if any(moved[i] and shared[i] for i in hit):
            tracer.slots.freeze(part.ids.ravel(), "a reshape merges it with other channels")
            continue
        old = [d for i in hit for d in blocks[i][0]]
        new = [d for i in hit for d in blocks[i][1]]
        ids = part.ids
        if any(moved[i] for i in hit):
            ids = np.expand_dims(ids, [n for n, d in enumerate(old) if d not in part.dims])
            ids = np.broadcast_to(ids, [before[d] for d in old]).reshape([after[d] for d in new])
        else:
            new = [n for o, n in zip(old, new, strict=True) if o in part.dims]
        made = next(n for o, n in blocks if part.channel in o)
        result.append(_numbered(tracer, part, _along_varying(ids, new, made, flexible)))
    return result


def _numbered(tracer: Tracer, before: Part, part: Part) -> Part:
    """``part``, with the number of the reshape if that made more dimensions of it; heads are taken if asked for."""
    if len(part.dims) == 1 or len(part.dims) <= len(before.dims):
        return part if len(part.dims) == 1 else Part(part.dims, part.ids, part.channel, before.split)
    trace = tracer.trace
    if before.split is not None:
        trace.splits[before.split] = part.ids[:0].ravel()  # these are no heads yet
    number = len(trace.splits)
    trace.splits.append(part.ids.ravel())
    at = part.dims.index(part.channel)
    return Part(part.dims, part.ids, part.dims[at - 1] if number in trace.heads and at else part.channel, number)


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


def _merged(tracer: Tracer, part: Part, blocks: list[tuple[list[int], list[int]]], moved: list[bool]) -> Part:
    """``part``, resolved into one dimension of channels if the reshape merges several of its dimensions."""
    for (old, _), moves in zip(blocks, moved, strict=True):
        if moves and len(set(old) & set(part.dims)) > 1:
            return tracer.resolve(part)
    return part


def _along_varying(ids: Ids, dims: list[int], made: list[int], flexible: Sequence[Collection[int]]) -> Part:
    """The part over those of ``dims`` along which ``ids`` vary; its channels are one of the dims in ``made``."""
    varying = [n for n in range(ids.ndim) if not (ids == ids.take([0], axis=n)).all()]
    if not varying:  # one channel spread over several positions
        varying = [ids.ndim - 1]
    for n in reversed(range(ids.ndim)):
        if n not in varying:
            ids = ids.take([0], axis=n).squeeze(n)
    left = tuple(dims[n] for n in varying)
    candidates = [dim for dim in left if dim in made] or list(left)
    for likely in flexible:
        candidates = [dim for dim in candidates if dim in likely] or candidates
        if any(dim in likely for dim in candidates):
            break
    return Part(left, ids, candidates[-1])


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
    tracer.set_parts(out, [part.moved(order.index) for part in tracer.parts(source)])
    tracer.same_parameter(source, out)


@rule_for("expand")
def _expand(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    new = out.dim() - args[0].dim()
    tracer.set_parts(out, [part.moved(lambda dim: dim + new) for part in tracer.parts(args[0])])
    tracer.label_by_numbers(out)
    _equate_shape(tracer, out)


@rule_for("repeat")
def _repeat(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    labels = [None] * (out.dim() - args[0].dim()) + tracer.labels(args[0])
    times = args[1]
    tracer.set_labels(out, [None if ids is None else np.tile(ids, n) for ids, n in zip(labels, times, strict=True)])


@rule_for("select", "unbind")
def _select(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    axis = _axis(func, args, kwargs) % source.dim()
    first = args[2] if func._schema.name == "aten::select" else 0
    for index, result in enumerate(tensors_in(out), start=first):
        parts = []
        for part in tracer.parts(source):
            left: Part | None = part
            if axis in part.dims:
                rows = np.split(part.ids, source.shape[axis], axis=part.dims.index(axis))
                left = part.narrowed(rows[index])
                if left is None:
                    tracer.slots.freeze(part.ids, tracer.says("picks single channels by number"))
                else:
                    tracer.balance(rows, tracer.where)
            parts += [left.moved(lambda dim: dim - (dim > axis))] if left is not None else []
        tracer.set_parts(result, parts)
        tracer.check_size(result, cut=True)


def _axis(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    names = [argument.name for argument in func._schema.arguments]
    axis: int = {**dict(zip(names, args, strict=False)), **kwargs}.get("dim", 0)
    return axis


@rule_for("slice", "narrow")
def _slice(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    axis = _axis(func, args, kwargs) % source.dim()
    start, step = (args[2] if len(args) > 2 else 0) or 0, args[4] if len(args) > 4 else 1
    size = source.shape[axis]
    start = min(start + size if start < 0 else start, size)
    parts = []
    for part in tracer.parts(source):
        cut = axis in part.dims and out.shape != source.shape
        left = _cut(tracer, part, axis, (start, out.shape[axis]), step) if cut else part
        parts += [left] if left is not None else []
    tracer.set_parts(out, parts)
    tracer.check_size(out, cut=True)


def _cut(tracer: Tracer, part: Part, axis: int, where: tuple[int, int], step: int) -> Part | None:
    """The channels from a start on, as many as a size."""
    start, size = where
    along = part.dims.index(axis)
    total = part.ids.shape[along]
    ids = part.ids.take(range(start, start + size * step, step), axis=along)
    before = part.ids.take(range(start), axis=along)
    equal = total % max(size, 1) == 0 and start % max(size, 1) == 0 and (size > 1 or part.ids.ndim > 1)
    kept = [number for number in tracer.given if isinstance(number, Number)]
    if equal:
        kept = [number for number in kept if tracer.trace.book.is_kept(number)]
    if step == 1 and size and _follows(tracer, kept, before, ids, along):
        pass
    elif step == 1 and size and equal:
        tracer.balance(np.split(part.ids, total // size, axis=along), tracer.where)
    else:
        tracer.slots.freeze(part.ids.ravel(), tracer.says(f"slices {size} of {total} channels, written as a number"))
        return None
    return part.narrowed(ids)


def _follows(tracer: Tracer, known: list[Number], before: Ids, ids: Ids, along: int) -> bool:
    """Whether the start or the end of a slice is among the numbers that can follow the channels before them."""
    edges = [_one_row(before, along), _one_row(np.concatenate([before, ids], axis=along), along)]
    bound = [(edge, number) for edge in edges for number in known if int(number) == len(edge) > 0]
    for edge, number in bound:
        tracer.bind(number, edge)
    return bool(bound)


def _one_row(ids: Ids, along: int) -> Ids:
    """The ids along one axis, at the first index of the others."""
    return np.moveaxis(ids, along, -1).reshape(-1, ids.shape[along])[0] if ids.size else ids.ravel()


@rule_for("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")
def _split(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
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
            left = part.narrowed(own)
            piece += [left] if left is not None else []
    for result, piece in zip(out, pieces, strict=True):
        tracer.set_parts(result, piece)
        tracer.check_size(result, cut=True)


def _bind_sizes(tracer: Tracer, sizes: list[int], ids: list[Ids], along: int) -> None:
    """Say how a split follows fewer channels: into equal parts, or by numbers that the user's modules keep."""
    if tracer.called == ATTENTION and sizes[1:] == [2 * sizes[0]]:  # query, and key with value
        tracer.balance(np.split(np.concatenate(ids, axis=along), 3, axis=along), tracer.where)
        return
    listed = tracer.called != "chunk" and list(map(int, tracer.given[: len(sizes)])) == sizes
    one_size = tracer.called == "split" and tracer.given[:1] and int(tracer.given[0]) == sizes[0]
    numbers = tracer.given[: len(sizes)] if listed else tracer.given[:1] if one_size else []
    for number, own in zip(numbers, ids, strict=False):
        if isinstance(number, Number):
            tracer.bind(number, _one_row(own, along))
    if len(set(sizes)) == 1:
        tracer.balance(ids, tracer.where)
        return
    reason = tracer.says(f"splits into {tuple(sizes)}, written as numbers")
    for n, own in enumerate(ids):
        if not (n < len(numbers) and isinstance(numbers[n], Number)) and not (one_size and not listed):
            tracer.slots.freeze(own.ravel(), reason)


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
