"""Rules for reshapes and permutations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

import numpy as np
from torch import Tensor

from lightning_prune.coupling.rules.registry import rule_for
from lightning_prune.coupling.symbols.channel_ids import Ids
from lightning_prune.coupling.symbols.sizes import Attribute
from lightning_prune.coupling.symbols.traced_ints import TracedInt
from lightning_prune.coupling.tracing.given_shapes import given_sizes, label_by_sizes
from lightning_prune.coupling.tracing.trace import Part
from lightning_prune.coupling.tracing.tracer import Tracer


@rule_for("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "flatten", "unflatten")
def reshape(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Spread channels over new dimensions, or merge them."""
    source = args[0]
    before, after = _nonempty(source.shape), _nonempty(out.shape)
    if prod(before) != prod(after):
        tracer.freeze(
            source, tracer.forward_reason(f"reshapes an empty tensor from {tuple(source.shape)} to {tuple(out.shape)}")
        )
    else:
        tracer.set_parts(out, reshaped(tracer, tracer.parts(source), before, after, _flexible(tracer, out)))
        tracer.same_parameter(source, out)
    _equate_shape(tracer, out)
    tracer.record_shape(out)


def _nonempty(shape: Sequence[int]) -> list[int]:
    """``shape`` with size 1 for an empty batch: a detector without detections runs its heads on an empty tensor."""
    return [max(size, 1) for size in shape]


def _equate_shape(tracer: Tracer, out: Tensor) -> None:
    """Require that the integers given for a shape equal the sizes of ``out``."""
    for dim, number in given_sizes(tracer, out).items():
        if isinstance(number, TracedInt):
            tracer.trace.size_equations.equate(number, tracer.traced_size(out, dim))


def _flexible(tracer: Tracer, out: Tensor) -> list[set[int]]:
    """Dimensions whose given size can follow the channels, the more likely ones first.

    These are sizes given as -1, computed from another size or read from an attribute; then the first of the sizes in a
    tuple of a module, as decoders keep (channels, height, width). A size that is given twice belongs to a square image.
    """
    given = given_sizes(tracer, out)
    if not given:
        return []
    entries = [
        dim
        for dim, number in given.items()
        if isinstance(number, TracedInt)
        and isinstance(number.expression, Attribute)
        and number.expression.index is not None
    ]
    written = {dim for dim, number in given.items() if not isinstance(number, TracedInt)}
    source = {dim: number.expression if isinstance(number, TracedInt) else number for dim, number in given.items()}
    twice = {dim for dim, own in source.items() if list(source.values()).count(own) > 1}
    every = set(range(out.dim()))
    return [every - twice - written - set(entries), set(entries[:1]), every - twice]


def reshaped(
    tracer: Tracer,
    parts: Sequence[Part],
    before: Sequence[int],
    after: Sequence[int],
    flexible: Sequence[Collection[int]] = (),
) -> list[Part]:
    """The parts after a reshape.

    Args:
        tracer: Records the ties.
        parts: The parts before the reshape.
        before: Shape before the reshape.
        after: Shape after the reshape.
        flexible: Dimensions of ``after`` that may shrink, the more likely ones first: where channels are spread over
            several dimensions, one of these becomes the channel dimension, otherwise the last.
    """
    blocks = _blocks(before, after)
    moved = [[before[d] for d in old] != [after[d] for d in new] for old, new in blocks]
    kept = [_merged(tracer, part, blocks, moved) for part in parts]
    shared = [sum(not set(old).isdisjoint(part.dims) for part in kept) > 1 for old, _ in blocks]
    between = _common_refinement(before, after)
    if any(m and s for m, s in zip(moved, shared, strict=True)) and between not in (None, list(before), list(after)):
        return reshaped(tracer, reshaped(tracer, parts, before, between), between, after, flexible)
    result = []
    for part in kept:
        hit = [i for i, (old, _) in enumerate(blocks) if not set(old).isdisjoint(part.dims)]
        if any(moved[i] and shared[i] for i in hit):
            what = f"reshapes {tuple(before)} to {tuple(after)}, which merges it with other channels"
            tracer.channel_ids.freeze(part.ids.ravel(), tracer.forward_reason(what))
            continue
        old = [d for i in hit for d in blocks[i][0]]
        new = [d for i in hit for d in blocks[i][1]]
        ids = part.ids
        if any(moved[i] for i in hit):
            ids = np.expand_dims(ids, [n for n, d in enumerate(old) if d not in part.dims])
            ids = np.broadcast_to(ids, [before[d] for d in old]).reshape([after[d] for d in new])
        else:
            new = [n for o, n in zip(old, new, strict=True) if o in part.dims]
        channel_dims = next(n for o, n in blocks if part.channel in o)
        reshaped_part = _along_varying(ids, new, channel_dims, flexible)
        single_head = (
            list(after).count(1) > list(before).count(1)
            and after[reshaped_part.channel - 1] == 1
            and reshaped_part.channel > 0
        )
        result.append(_as_heads(tracer, part, reshaped_part, single_head))
    return result


def _as_heads(tracer: Tracer, before: Part, part: Part, single_head: bool) -> Part:
    """``part`` with the number of the reshape that spread it over heads, or over a single head (``single_head``).

    The heads become the channel dimension if the trace removes whole heads.
    """
    if len(part.dims) <= len(before.dims) and not single_head:
        return part if len(part.dims) == 1 else Part(part.dims, part.ids, part.channel, before.split)
    trace = tracer.trace
    if before.split is not None:
        trace.splits[before.split] = part.ids[:0].ravel()  # the earlier reshape made no heads
    number = trace.add_split(part.ids)
    at = part.dims.index(part.channel)
    if number in trace.heads and single_head:
        tracer.channel_ids.tie_all(part.ids)
    elif number in trace.heads and at:
        return Part(part.dims, part.ids, part.dims[at - 1], number)
    return Part(part.dims, part.ids, part.channel, number)


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of dimensions (of size > 1) with the same number of elements on both sides."""
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


def _common_refinement(before: Sequence[int], after: Sequence[int]) -> list[int] | None:
    """The coarsest shape that refines both shapes; None where there is none."""
    edges = sorted({*accumulate(before, mul), *accumulate(after, mul)} - {0})
    steps = list(zip([1, *edges], edges, strict=False))
    return None if any(high % low for low, high in steps) else [high // low for low, high in steps if high != low]


def _merged(tracer: Tracer, part: Part, blocks: list[tuple[list[int], list[int]]], moved: list[bool]) -> Part:
    """``part``, resolved into one channel dimension if the reshape merges several of its dimensions."""
    for (old, _), moves in zip(blocks, moved, strict=True):
        if moves and len(set(old) & set(part.dims)) > 1:
            return tracer.resolve(part)
    return part


def _along_varying(ids: Ids, dims: list[int], channel_dims: list[int], flexible: Sequence[Collection[int]]) -> Part:
    """The part over the dimensions along which ``ids`` vary; its channel dimension is one of ``channel_dims``."""
    varying = [n for n in range(ids.ndim) if not (ids == ids.take([0], axis=n)).all()]
    if not varying:  # one channel spread over several positions
        varying = [ids.ndim - 1]
    for n in reversed(range(ids.ndim)):
        if n not in varying:
            ids = ids.take([0], axis=n).squeeze(n)
    kept = tuple(dims[n] for n in varying)
    candidates = [dim for dim in kept if dim in channel_dims] or list(kept)
    for likely in flexible:
        candidates = [dim for dim in candidates if dim in likely] or candidates
        if any(dim in likely for dim in candidates):
            break
    return Part(kept, ids, candidates[-1])


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
    label_by_sizes(tracer, out)
    _equate_shape(tracer, out)


@rule_for("repeat")
def _repeat(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    labels = [None] * (out.dim() - args[0].dim()) + tracer.labels(args[0])
    times = args[1]
    tracer.set_labels(out, [None if ids is None else np.tile(ids, n) for ids, n in zip(labels, times, strict=True)])
