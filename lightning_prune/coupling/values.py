"""What is known about the values of a tensor: that they are all alike, or that a masked channel is not 0 in it.

A tensor of one constant, such as the first hidden state of a recurrent network, says nothing about which channel is
which: it can carry any channels of its size. If its size does not follow them, the forward pass fails on the copy where
the plan is tried.

A masked channel is 0 behind its layer and behind most operations, but not behind a sigmoid. Where that matters (a sum
over the channels) it has to be known: such channels carry *leaky* labels, fresh slots tied to the real ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from lightning_prune.coupling.numbers import Number
from lightning_prune.coupling.slots import Ids, Slots
from lightning_prune.coupling.trace import Tracer


@dataclass(frozen=True)
class _Constant:
    tensor: Tensor  # kept alive, so that its storage is not taken by another
    version: int
    zero: bool
    numbers: Mapping[int, int]  # what was written for its dimensions


_CONSTANTS: WeakKeyDictionary[Tracer, dict[int, _Constant]] = WeakKeyDictionary()
_LEAKY: WeakKeyDictionary[Slots, defaultdict[str, list[int]]] = WeakKeyDictionary()


def note_constant(tracer: Tracer, tensor: Tensor, zero: bool) -> None:
    """Say that ``tensor`` was just made, and that no channel can be told from another in it."""
    found = _CONSTANTS.setdefault(tracer, {})
    found[tensor.untyped_storage()._cdata] = _Constant(tensor, tensor._version, zero, tracer.shape_given(tensor))


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
        dim %= tensor.dim()
        before = constant.tensor.dim() - tensor.dim()
        whole = before >= 0 and constant.tensor.stride()[before:] == tensor.stride()
        written = constant.numbers.get(dim + before)
        if whole and constant.tensor.shape[before:] == tensor.shape and isinstance(written, Number):
            tracer.trace.book.equate(written, tracer.number(tensor, dim))


def leaky(tracer: Tracer, label: Ids) -> Ids:
    """Fresh slots for the channels ``label``, which are not 0 from here on when they are masked."""
    if is_leaky(tracer, label):
        return label
    fresh = tracer.slots.new(len(label))
    spans = _LEAKY.setdefault(tracer.slots, defaultdict(list))
    spans["start"].append(int(fresh[0]))
    spans["stop"].append(int(fresh[-1]) + 1)
    tracer.tie(fresh, label, "beside a tensor whose size is fixed")
    return fresh


def is_leaky(tracer: Tracer, label: Ids) -> bool:
    """Whether a channel of ``label`` is not 0 when it is masked."""
    spans = _LEAKY.get(tracer.slots)
    if not spans:
        return False
    before = np.searchsorted(spans["start"], label, side="right") - 1
    return bool(((before >= 0) & (label < np.asarray(spans["stop"])[before])).any())


def _constant(tracer: Tracer, tensor: Tensor) -> _Constant | None:
    found = _CONSTANTS.get(tracer)
    return found.get(tensor.untyped_storage()._cdata) if found else None
