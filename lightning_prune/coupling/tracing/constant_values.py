"""What is known about the values of a tensor: that they are all alike, or that a masked channel is not 0 in it.

A tensor of one constant, such as the first hidden state of a recurrent network, says nothing about which channel is
which: it can carry any channels of its size. If its size does not follow them, the forward pass fails on the copy where
the plan is tried.

A masked channel is 0 behind its layer and behind most operations, but not behind a sigmoid. Where that matters (a sum
over the channels) it has to be known: such channels carry *leaky* labels, fresh slots tied to the real ones.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lightning_prune.coupling.symbols.channel_ids import Ids
from lightning_prune.coupling.symbols.sizes import Number
from lightning_prune.coupling.tracing.given_shapes import shape_given
from lightning_prune.coupling.tracing.tensor_info import Constant
from lightning_prune.coupling.tracing.trace import Labels
from lightning_prune.coupling.tracing.tracer import Tracer


def note_constant(tracer: Tracer, tensor: Tensor, zero: bool, like: Tensor | None = None) -> None:
    """Say that ``tensor`` was just made, with the shape of ``like``, and is the same for all channels."""
    model = None if like is None else _constant(tracer, like)
    written = model.numbers if model is not None and model.tensor.shape == tensor.shape else shape_given(tracer, tensor)
    tracer.constants[tensor.untyped_storage()._cdata] = Constant(tensor, tensor._version, zero, written)


def copied_constant(tracer: Tracer, source: Tensor, out: Tensor) -> None:
    """Say that ``out`` has the values of ``source``, in memory of its own."""
    constant = _constant(tracer, source)
    if constant is not None and is_constant(tracer, source) and _constant(tracer, out) is not constant:
        note_constant(tracer, out, constant.zero, like=source)


def same_constant(tracer: Tracer, source: Tensor, out: Tensor) -> None:
    """Say that ``out`` is another name of ``source``: what code makes it may only see under that name."""
    constant = _constant(tracer, source)
    if constant is not None and constant.tensor is source:
        tracer.constants[out.untyped_storage()._cdata] = Constant(
            out, constant.version, constant.zero, constant.numbers
        )


def is_constant(tracer: Tracer, tensor: Tensor, writes: int = 0) -> bool:
    """Whether ``tensor`` is a constant, or a view of one, into which nothing was written before the last ``writes``."""
    constant = _constant(tracer, tensor)
    return constant is not None and tensor._version == constant.version + writes


def adopt(tracer: Tracer, tensor: Tensor, dim: int, label: Ids | None, writes: int = 0) -> None:
    """Let a constant carry ``label`` along ``dim`` where it carries nothing yet."""
    labels = tracer.labels(tensor)
    fits = label is not None and labels[dim] is None and tensor.shape[dim] == len(label)
    if fits and is_constant(tracer, tensor, writes):
        constant = _constant(tracer, tensor)
        assert constant is not None
        assert label is not None
        labels[dim] = label if constant.zero else leaky(tracer, label)
        tracer.set_labels(tensor, labels)
        written = constant.numbers.get(_dim_of(constant.tensor, tensor, dim))
        if isinstance(written, Number):
            tracer.trace.book.equate(written, tracer.number(tensor, dim % tensor.dim()))


def adopt_whole(tracer: Tracer, view: Tensor, dim: int) -> None:
    """Let the constant that ``view`` is a part of carry what was just written into it along ``dim``."""
    constant, label = _constant(tracer, view), tracer.labels(view)[dim]
    if constant is None or label is None:
        return
    whole = constant.tensor
    place = _dim_of(whole, view, dim)
    if place < 0:
        tracer.slots.freeze(label, tracer.says("writes it into a part of a tensor whose size cannot shrink"))
        return
    labels = tracer.labels(whole)
    if labels[place] is None:
        labels[place] = label
        tracer.set_labels(whole, labels)


def adopt_fresh(tracer: Tracer, tensor: Tensor, dim: int) -> None:
    """Let a constant whose size along ``dim`` is a number that a module keeps carry channels nobody has met yet."""
    if tensor.shape[dim] > 1 and is_constant(tracer, tensor) and tracer.labels(tensor)[dim] is None:
        constant = _constant(tracer, tensor)
        assert constant is not None
        if isinstance(constant.numbers.get(_dim_of(constant.tensor, tensor, dim)), Number):
            adopt(tracer, tensor, dim, tracer.slots.new(tensor.shape[dim]))


def _dim_of(whole: Tensor, view: Tensor, dim: int) -> int:
    """The dimension of ``whole`` that lies completely along ``dim`` of a view of it, -1 where none does."""
    alike = (
        d
        for d in range(whole.dim())
        if (whole.shape[d], whole.stride(d)) == (view.shape[dim], view.stride(dim)) and view.shape[dim] > 1
    )
    return next(alike, -1)


def leaky(tracer: Tracer, label: Ids) -> Ids:
    """Fresh slots for the channels ``label``, which are not 0 from here on when they are masked."""
    if is_leaky(tracer, label):
        return label
    channels, places = np.unique(label, return_inverse=True)
    fresh = tracer.slots.new(len(channels))
    tracer.slots.mark_leaky(fresh)
    tracer.tie(fresh, channels)
    return fresh[places]


def all_leaky(tracer: Tracer, labels: Labels) -> Labels:
    """``labels`` behind an operation that makes values of zeros."""
    return [None if label is None else leaky(tracer, label) for label in labels]


def is_leaky(tracer: Tracer, label: Ids) -> bool:
    """Whether a channel of ``label`` is not 0 when it is masked."""
    return tracer.slots.any_leaky(label)


def _constant(tracer: Tracer, tensor: Tensor) -> Constant | None:
    return tracer.constants.get(tensor.untyped_storage()._cdata)
