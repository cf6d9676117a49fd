"""Scalars that forward computes from a width, such as the 1/√d of attention.

With fewer channels such a scalar is another one, and the network would no longer equal the one with zeros in their
place. Where the scaled tensor is a homogeneous image of some weights, these take up the difference. So a pass notes
every scalar that multiplies a tensor, and what tensors are proportional to; a pass of the smaller network shows which
scalars have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from lightning_prune.coupling.symbols.channel_ids import FIXED, Ids
from lightning_prune.coupling.symbols.constants import (
    Constants,
    constants_of,
    every_tensor,
    is_number,
    name_of,
    scalar_of,
)
from lightning_prune.coupling.symbols.proportions import Factors, Proportion, Scalar, same_rows

if TYPE_CHECKING:
    from lightning_prune.coupling.tracing.tracer import Tracer

_TAKING = frozenset(("select", "unbind", "slice", "split", "split_with_sizes"))
_HOMOGENEOUS = _TAKING | frozenset(  # in their first operand, for factors above 0
    ("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "t", "transpose", "permute", "expand",
     "alias", "clone", "detach", "_to_copy", "contiguous", "lift_fresh", "view_as_complex", "view_as_real", "_conj",
     "neg", "sum", "mean", "cumsum", "flip", "roll", "repeat", "tril", "triu", "index", "index_select", "gather",
     "diagonal", "unfold", "relu", "leaky_relu", "abs", "amax", "amin", "max_pool2d_with_indices", "avg_pool2d",
     "_adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d")
)  # fmt: skip
_READING = frozenset(
    ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim", "_unique2", "bincount",
     "unique_consecutive", "torchvision::nms")
)  # fmt: skip
_LAYERS = {
    "linear": (0, 1, 2), "addmm": (1, 2, 0), "convolution": (0, 1, 2), "native_layer_norm": (None, 2, 3),
    "native_batch_norm": (None, 1, 2), "_native_batch_norm_legit": (None, 1, 2),
    "_native_batch_norm_legit_no_training": (None, 1, 2), "_batch_norm_with_update": (None, 1, 2),
    "cudnn_batch_norm": (None, 1, 2), "native_group_norm": (None, 1, 2), "_fused_rms_norm": (None, 2, None),
}  # fmt: skip  # operation -> positions of what it is linear in besides, weight and bias


class ProportionTracker:
    """Follows, for one pass, what tensors are proportional to."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer, self.scalars = tracer, tracer.trace.scalars
        self.scalars.runs += 1
        self.on_meta = all(tensor.is_meta for tensor in tracer.trace.tensors.values())
        self.reads = False  # whether values that channels made have become numbers of the code
        self._handlers: dict[Any, Callable[..., None]] = {}

    def after(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Take note of an operation that has run and been labelled."""
        name, scalar = name_of(func), scalar_of(func, args)
        if name in _READING and not self.on_meta:
            self.leaves(args[0])
        if scalar is not None:
            self._multiplied(scalar, args, out)
        else:
            self.computed(constants_of(func, args, kwargs, self.on_meta), (*args, out))
            handler = self._handlers.get(func) or self._handlers.setdefault(func, self._handler(name))
            handler(name, args, out)
        if name == "div" and kwargs.get("rounding_mode"):
            self._other(name, (out,), out)

    def computed(self, values: tuple[float, ...], beside: tuple[Any, ...]) -> None:
        """Take note of numbers that the first pass computes with, and of the tensors that they meet."""
        if values and self.scalars.runs == 1 and not self.reads:
            met = [ids for tensor in every_tensor(beside) for ids in self._channels(tensor)]
            self.scalars.constants.append((Constants.at(self.tracer.where, values), _joined(met)))

    def leaves(self, tensor: Tensor) -> None:
        """Say that values become numbers of the code: if channels made them, these may follow more than a width.

        Then what the first pass computes with from here on is not compared, and no change of a scalar taken up.
        """
        self.leak((tensor,))
        if not self.on_meta and self._channels(tensor):
            self.reads = True
            self.scalars.constants.clear()

    def leak(self, tensors: Iterable[Tensor]) -> None:
        """Say that the values of ``tensors`` have to stay what they are."""
        for tensor in tensors:
            factors = self._factors(tensor)
            if factors is not None:
                self.scalars.leaks.append((factors, self.scalars.runs))

    def same(self, source: Tensor, out: Tensor) -> None:
        """Say that ``out`` holds the values of ``source``."""
        known, new = self.tracer.facts(source), self.tracer.facts(out)
        new.factors, new.summed = self._factors(source), known.summed

    def _handler(self, name: str) -> Callable[..., None]:
        if name in _LAYERS:
            return self._layer
        if name in _HOMOGENEOUS:
            return self._moved
        if name in ("mul", "div", "mm", "bmm"):
            return self._product
        return self._beside if name in ("add", "sub", "cat", "stack") else self._other

    def _factors(self, tensor: Tensor) -> Factors | None:
        """What ``tensor`` is proportional to; a parameter to itself."""
        facts = self.tracer.facts(tensor)
        if facts.factors is None and facts.name is not None:
            trace = self.tracer.trace
            own = next(((dim, ids) for dim, ids in enumerate(trace.labels[facts.name]) if ids is not None), None)
            if own is not None and isinstance(trace.tensors[facts.name], nn.Parameter):
                facts.factors = Factors((Proportion((facts.name,), *own, int(own[1][0])),))
        return facts.factors

    def _other(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        self.leak(every_tensor(args))
        for result in every_tensor((out,)):
            self._remember(args, result)

    def _multiplied(self, value: float, args: tuple[Any, ...], out: Tensor) -> None:
        source = next(a for a in args[:2] if isinstance(a, Tensor) and not is_number(a))
        found, widths = self.scalars.found, _joined(self._channels(source))
        scalar = Scalar(len(found), value, widths[widths != FIXED], self.tracer.where, self.scalars.runs, self.scalars)
        found.append(scalar)
        if self.reads:  # it may come from values
            self.scalars.leaks.append((Factors((), {scalar.number: 1}), self.scalars.runs))
        factors = self._factors(source) or Factors()
        self.tracer.facts(out).factors = factors.times(Factors((), {scalar.number: 1}))
        self._remember(args, out)

    def _moved(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        source = args[0]
        factors = self._factors(source)
        for result in every_tensor((out,)):
            self._remember((source,), result)
            if factors is None:
                continue
            if result.is_floating_point() or result.is_complex():
                narrowed = self._narrowed(factors, source, result) if name in _TAKING else factors
                self.tracer.facts(result).factors = narrowed
            else:
                self.leak((source,))

    def _narrowed(self, factors: Factors, source: Tensor, result: Tensor) -> Factors:
        """Factors of a part of ``source``: where it has some of the rows, these alone."""
        before, after = self._carried(source), self._carried(result)
        if before.size == after.size or not after.size:
            return factors
        before, after = np.unique(before), np.unique(after)  # several times where heads share a dimension with examples
        narrowed = (replace(own, ids=after) if same_rows(own.ids, before) else own for own in factors.origins)
        return Factors(tuple(narrowed), factors.scalars)

    def _product(self, name: str, args: tuple[Any, ...], out: Tensor) -> None:
        left, right = (self._rows(a, out) if isinstance(a, Tensor) else None for a in args[:2])
        known = left is not None or right is not None
        factors = (left or Factors()).times(right or Factors(), -1 if name == "div" else 1) if known else None
        self.tracer.facts(out).factors = factors
        if name in ("mm", "bmm"):
            self._summed(args[0], out)
        else:
            self._remember(args, out)

    def _layer(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        linear, *places = _LAYERS[name]
        weight, bias = (args[n] if n is not None and n < len(args) else None for n in places)
        source, made = args[linear or 0], out if isinstance(out, Tensor) else out[0]
        rows = None if weight is None else self._rows(weight, made)
        if bias is not None and (rows := self._with_bias(rows, bias)) is None:
            self.leak(every_tensor((weight, bias)))
        if linear is None or bias is not None:
            self.leak((source,))
        else:
            factors = self._factors(source)
            rows = factors.times(rows) if factors is not None and rows is not None else factors or rows
        self.tracer.facts(made).factors = rows
        if linear is not None:
            self._summed(source, made)

    def _rows(self, weight: Tensor, out: Tensor) -> Factors | None:
        """Factors of ``weight``, along the dimension whose channels ``out`` carries if there is one."""
        factors = self._factors(weight)
        origin = None if factors is None else factors.weight
        if origin is None:
            return factors
        labels = enumerate(self.tracer.trace.labels[origin.tensors[0]])
        for dim, ids in ((dim, ids) for dim, ids in labels if ids is not None):
            for part in self.tracer.parts(out):
                own = ids if part.ids is ids else part.ids[(part.ids >= ids[0]) & (part.ids <= ids[-1])]
                if own.size:
                    return Factors((Proportion(origin.tensors, dim, own, int(ids[0])),))
        return factors

    def _with_bias(self, factors: Factors | None, bias: Tensor) -> Factors | None:
        """Factors behind the addition of ``bias`` to the image of a weight with the same rows, None if it has others.

        What else is a factor has to stay then.
        """
        added = self._factors(bias)
        other = None if added is None else added.weight
        if factors is None or other is None or bias.dim() != 1:
            return None
        for origin in factors.origins:
            if len(origin.tensors) == origin.power == 1 and same_rows(origin.rows, other.rows):
                rest = Factors(tuple(own for own in factors.origins if own is not origin), factors.scalars)
                if rest.origins or rest.scalars:
                    self.scalars.leaks.append((rest, self.scalars.runs))
                tensors = (*origin.tensors, *other.tensors)
                return Factors((Proportion(tensors, origin.dim, origin.ids, origin.start),))
        return None

    def _beside(self, name: str, args: tuple[Any, ...], out: Tensor) -> None:
        tensors = list(every_tensor(args))
        first, *others = (self._factors(tensor) for tensor in tensors)
        factors = first if others else None
        for other in others:
            factors = None if factors is None else factors.beside(other)
        if factors is None and name == "add" and others and self._ends_with_rows(tensors[0]):
            factors = self._with_bias(first, tensors[1])
        if factors is None:
            self.leak(tensors)
        self.tracer.facts(out).factors = factors
        self._remember(args, out)

    def _ends_with_rows(self, tensor: Tensor) -> bool:
        """Whether the last dimension of ``tensor`` is the rows of a weight."""
        factors, parts = self._factors(tensor), self.tracer.parts(tensor)
        last = [part.ids for part in parts if part.dims == (tensor.dim() - 1,)]
        return factors is not None and any(np.array_equal(last, [origin.ids]) for origin in factors.origins)

    def _summed(self, source: Tensor, out: Tensor) -> None:
        self.tracer.facts(out).summed = tuple(part.ids for part in self.tracer.parts(source))

    def _remember(self, args: tuple[Any, ...], out: Tensor) -> None:
        """Hand on which channels were summed over, so that it is known what a changed scalar concerns."""
        kept = len(self.tracer.parts(out))
        lost: dict[int, Ids] = {}
        for tensor in every_tensor(args):
            parts = self.tracer.parts(tensor)
            gone = [part.ids for part in parts] if len(parts) > kept else ()
            lost.update((id(ids), ids) for ids in (*self.tracer.facts(tensor).summed, *gone))
        self.tracer.facts(out).summed = tuple(lost.values())

    def _channels(self, tensor: Tensor) -> list[Ids]:
        """Channels that a tensor carries or was summed over."""
        return [*(part.ids for part in self.tracer.parts(tensor)), *self.tracer.facts(tensor).summed]

    def _carried(self, tensor: Tensor) -> Ids:
        return _joined([part.ids for part in self.tracer.parts(tensor)])


def _joined(ids: list[Ids]) -> Ids:
    if len(ids) == 1:
        return ids[0].ravel()
    return np.concatenate([some.ravel() for some in ids]) if ids else np.empty(0, np.int64)
