"""Values of tensors: constants, and channels that are not 0 when they are masked.

A tensor filled with one value, such as the first hidden state of a recurrent network, does not distinguish channels: it
can carry any channels of its size. If its size does not follow them, the forward pass fails on the copy on which the
plan is tried.

A masked channel is 0 after its layer and after most operations, but not after a sigmoid. Where that matters (a sum over
the channels) such channels carry *nonzero-masked* labels: new channel ids that are tied to the real ones.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lightning_prune.coupling.symbols.channel_ids import Ids
from lightning_prune.coupling.symbols.traced_ints import TracedInt
from lightning_prune.coupling.tracing.given_shapes import given_sizes
from lightning_prune.coupling.tracing.tensor_info import Constant
from lightning_prune.coupling.tracing.trace import Labels
from lightning_prune.coupling.tracing.tracer import Tracer


def record_constant(tracer: Tracer, tensor: Tensor, zero: bool, like: Tensor | None = None) -> None:
    """Record that ``tensor`` was just created, with the shape of ``like``, and has one value for all channels."""
    model = None if like is None else _constant(tracer, like)
    sizes = model.sizes if model is not None and model.tensor.shape == tensor.shape else given_sizes(tracer, tensor)
    tracer.constants[tensor.untyped_storage()._cdata] = Constant(tensor, tensor._version, zero, sizes)


def copy_constant(tracer: Tracer, source: Tensor, out: Tensor) -> None:
    """Record that ``out`` is a copy of ``source``: a constant if ``source`` is one."""
    constant = _constant(tracer, source)
    if constant is not None and is_constant(tracer, source) and _constant(tracer, out) is not constant:
        record_constant(tracer, out, constant.zero, like=source)


def alias_constant(tracer: Tracer, source: Tensor, out: Tensor) -> None:
    """Record that ``out`` is an alias of ``source``; the code may only use the alias."""
    constant = _constant(tracer, source)
    if constant is not None and constant.tensor is source:
        tracer.constants[out.untyped_storage()._cdata] = Constant(out, constant.version, constant.zero, constant.sizes)


def is_constant(tracer: Tracer, tensor: Tensor, writes: int = 0) -> bool:
    """Whether ``tensor`` is a constant, or a view of one, into which only the last ``writes`` operations wrote."""
    constant = _constant(tracer, tensor)
    return constant is not None and tensor._version == constant.version + writes


def label_constant(tracer: Tracer, tensor: Tensor, dim: int, label: Ids | None, writes: int = 0) -> None:
    """Label ``tensor`` with ``label`` along ``dim``, if it is a constant without a label there."""
    labels = tracer.labels(tensor)
    fits = label is not None and labels[dim] is None and tensor.shape[dim] == len(label)
    if fits and is_constant(tracer, tensor, writes):
        constant = _constant(tracer, tensor)
        assert constant is not None
        assert label is not None
        labels[dim] = label if constant.zero else nonzero_masked(tracer, label)
        tracer.set_labels(tensor, labels)
        given = constant.sizes.get(_dim_of(constant.tensor, tensor, dim))
        if isinstance(given, TracedInt):
            tracer.trace.size_equations.equate(given, tracer.traced_size(tensor, dim % tensor.dim()))


def label_written_constant(tracer: Tracer, view: Tensor, dim: int) -> None:
    """Label the constant that ``view`` is a part of with the channels just written into it along ``dim``."""
    constant, label = _constant(tracer, view), tracer.labels(view)[dim]
    if constant is None or label is None:
        return
    whole = constant.tensor
    whole_dim = _dim_of(whole, view, dim)
    if whole_dim < 0:
        tracer.channel_ids.freeze(
            label, tracer.forward_reason("writes it into a part of a tensor whose size cannot shrink")
        )
        return
    labels = tracer.labels(whole)
    if labels[whole_dim] is None:
        labels[whole_dim] = label
        tracer.set_labels(whole, labels)


def label_new_constant(tracer: Tracer, tensor: Tensor, dim: int) -> None:
    """Label a constant along ``dim`` with new channels, if its size there is an attribute of a module."""
    if tensor.shape[dim] > 1 and is_constant(tracer, tensor) and tracer.labels(tensor)[dim] is None:
        constant = _constant(tracer, tensor)
        assert constant is not None
        if isinstance(constant.sizes.get(_dim_of(constant.tensor, tensor, dim)), TracedInt):
            label_constant(tracer, tensor, dim, tracer.channel_ids.new(tensor.shape[dim]))


def _dim_of(whole: Tensor, view: Tensor, dim: int) -> int:
    """The dimension of ``whole`` that ``dim`` of a view of it covers completely, -1 where there is none."""
    matching = (
        d
        for d in range(whole.dim())
        if (whole.shape[d], whole.stride(d)) == (view.shape[dim], view.stride(dim)) and view.shape[dim] > 1
    )
    return next(matching, -1)


def nonzero_masked(tracer: Tracer, label: Ids) -> Ids:
    """New ids for the channels ``label``, which are not 0 from here on when they are masked."""
    if is_nonzero_masked(tracer, label):
        return label
    channels, positions = np.unique(label, return_inverse=True)
    fresh = tracer.channel_ids.new(len(channels))
    tracer.channel_ids.mark_nonzero_masked(fresh)
    tracer.tie(fresh, channels)
    return fresh[positions]


def all_nonzero_masked(tracer: Tracer, labels: Labels) -> Labels:
    """``labels`` after an operation that maps 0 to other values."""
    return [None if label is None else nonzero_masked(tracer, label) for label in labels]


def is_nonzero_masked(tracer: Tracer, label: Ids) -> bool:
    """Whether a channel of ``label`` is not 0 when it is masked."""
    return tracer.channel_ids.any_nonzero_masked(label)


def _constant(tracer: Tracer, tensor: Tensor) -> Constant | None:
    return tracer.constants.get(tensor.untyped_storage()._cdata)
