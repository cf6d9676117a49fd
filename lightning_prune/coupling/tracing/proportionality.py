"""Scalars that forward computes from a width, such as the 1/√d of attention.

With fewer channels the code computes another scalar, and the smaller network would no longer equal the network in which
the removed channels are zero. Where the scaled tensor is a homogeneous function of some weights, these weights can
compensate for the difference. The tracker therefore records every scalar that multiplies a tensor, and what tensors are
proportional to; a pass of the smaller network shows which scalars have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_prune.coupling.symbols.aten import op_name
from lightning_prune.coupling.symbols.channel_ids import NO_CHANNEL, Ids
from lightning_prune.coupling.symbols.constants import Constants, constants_of, is_number, scalar_of
from lightning_prune.coupling.symbols.proportions import Factors, Proportion, Scalar, same_rows
from lightning_prune.coupling.tracing.homogeneous import HOMOGENEOUS, LAYERS, READ_BY_PYTHON, SELECTING
from lightning_prune.coupling.tracing.tensor_info import TensorTable
from lightning_prune.coupling.tracing.trace import Trace
from lightning_prune.network.tensors import tensors_in


class ProportionTracker:
    """Tracks what the tensors of one pass are proportional to.

    Args:
        trace: Collects the scalars.
        table: Holds the factors of each tensor.
    """

    def __init__(self, trace: Trace, table: TensorTable) -> None:
        self._trace, self._table = trace, table
        self._scalars = trace.scalars
        self._scalars.runs += 1
        self.on_meta = all(tensor.is_meta for tensor in trace.tensors.values())
        self._values_read = False  # whether the code has read values that depend on channels
        self._handlers: dict[Any, Callable[..., None]] = {}

    def after(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Record an operation that has run and whose results are labelled."""
        name, scalar = op_name(func), scalar_of(func, args)
        if name in READ_BY_PYTHON and not self.on_meta:
            self.mark_read_by_python(args[0])
        if scalar is not None:
            self._multiplied(scalar, args, out)
        else:
            self.record_constants(constants_of(func, args, kwargs, self.on_meta), (*args, out))
            handler = self._handlers.get(func) or self._handlers.setdefault(func, self._handler(name))
            handler(name, args, out)
        if name == "div" and kwargs.get("rounding_mode"):
            self._other(name, (out,), out)

    def record_constants(self, values: tuple[float, ...], operands: tuple[Any, ...]) -> None:
        """Record numbers that the first pass computes with, and the channels of the operands."""
        if values and self._scalars.runs == 1 and not self._values_read:
            channels = [ids for tensor in tensors_in(operands) for ids in self._channels(tensor)]
            where = self._trace.size_equations.where
            self._scalars.constants.append((Constants.at(where, values), _joined(channels)))

    def mark_read_by_python(self, tensor: Tensor) -> None:
        """Record that the code reads the values of ``tensor`` as Python numbers.

        If they depend on channels, later numbers of the code may depend on more than a width: constants of the first
        pass are no longer compared, and no change of a scalar is compensated.
        """
        self.fix((tensor,))
        if not self.on_meta and self._channels(tensor):
            self._values_read = True
            self._scalars.constants.clear()

    def fix(self, tensors: Iterable[Tensor]) -> None:
        """Record that the values of ``tensors`` must not change."""
        for tensor in tensors:
            factors = self._factors(tensor)
            if factors is not None:
                self._scalars.fixed.append((factors, self._scalars.runs))

    def copy(self, source: Tensor, out: Tensor) -> None:
        """Record that ``out`` holds the values of ``source``."""
        known, new = self._table.info(source), self._table.info(out)
        new.factors, new.summed = self._factors(source), known.summed

    def _handler(self, name: str) -> Callable[..., None]:
        if name in LAYERS:
            return self._layer
        if name in HOMOGENEOUS:
            return self._moved
        if name in ("mul", "div", "mm", "bmm"):
            return self._product
        return self._sum if name in ("add", "sub", "cat", "stack") else self._other

    def _factors(self, tensor: Tensor) -> Factors | None:
        """The factors of ``tensor``; a parameter is its own factor."""
        info = self._table.info(tensor)
        if info.factors is None and info.name is not None:
            labels = self._trace.labels[info.name]
            own = next(((dim, ids) for dim, ids in enumerate(labels) if ids is not None), None)
            if own is not None and isinstance(self._trace.tensors[info.name], nn.Parameter):
                info.factors = Factors((Proportion((info.name,), *own, int(own[1][0])),))
        return info.factors

    def _other(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        self.fix(tensors_in(args))
        for result in tensors_in((out,)):
            self._pass_on_summed(args, result)

    def _multiplied(self, value: float, args: tuple[Any, ...], out: Tensor) -> None:
        source = next(a for a in args[:2] if isinstance(a, Tensor) and not is_number(a))
        found, widths = self._scalars.found, _joined(self._channels(source))
        widths, where = widths[widths != NO_CHANNEL], self._trace.size_equations.where
        scalar = Scalar(len(found), value, widths, where, self._scalars.runs, self._scalars)
        found.append(scalar)
        if self._values_read:  # the scalar may have been computed from values
            self._scalars.fixed.append((Factors((), {scalar.number: 1}), self._scalars.runs))
        factors = self._factors(source) or Factors()
        self._table.info(out).factors = factors.times(Factors((), {scalar.number: 1}))
        self._pass_on_summed(args, out)

    def _moved(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        source = args[0]
        factors = self._factors(source)
        for result in tensors_in((out,)):
            self._pass_on_summed((source,), result)
            if factors is None:
                continue
            if result.is_floating_point() or result.is_complex():
                narrowed = self._narrowed(factors, source, result) if name in SELECTING else factors
                self._table.info(result).factors = narrowed
            else:
                self.fix((source,))

    def _narrowed(self, factors: Factors, source: Tensor, result: Tensor) -> Factors:
        """Factors of a part of ``source``: where the part has some of the rows, only these rows."""
        before, after = self._carried(source), self._carried(result)
        if before.size == after.size or not after.size:
            return factors
        before, after = np.unique(before), np.unique(after)  # ids repeat where heads and examples share a dimension
        narrowed = (replace(own, ids=after) if same_rows(own.ids, before) else own for own in factors.proportions)
        return Factors(tuple(narrowed), factors.scalars)

    def _product(self, name: str, args: tuple[Any, ...], out: Tensor) -> None:
        left, right = (self._rows(a, out) if isinstance(a, Tensor) else None for a in args[:2])
        known = left is not None or right is not None
        factors = (left or Factors()).times(right or Factors(), -1 if name == "div" else 1) if known else None
        self._table.info(out).factors = factors
        if name in ("mm", "bmm"):
            self._set_summed(args[0], out)
        else:
            self._pass_on_summed(args, out)

    def _layer(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        linear, *positions = LAYERS[name]
        weight, bias = (args[n] if n is not None and n < len(args) else None for n in positions)
        source, result = args[linear or 0], out if isinstance(out, Tensor) else out[0]
        rows = None if weight is None else self._rows(weight, result)
        if bias is not None and (rows := self._with_bias(rows, bias)) is None:
            self.fix(tensors_in((weight, bias)))
        if linear is None or bias is not None:
            self.fix((source,))
        else:
            factors = self._factors(source)
            rows = factors.times(rows) if factors is not None and rows is not None else factors or rows
        self._table.info(result).factors = rows
        if linear is not None:
            self._set_summed(source, result)

    def _rows(self, weight: Tensor, out: Tensor) -> Factors | None:
        """Factors of ``weight``, along the dimension whose channels ``out`` carries if there is one."""
        factors = self._factors(weight)
        single = None if factors is None else factors.single_weight
        if single is None:
            return factors
        labels = enumerate(self._trace.labels[single.tensors[0]])
        for dim, ids in ((dim, ids) for dim, ids in labels if ids is not None):
            for part in self._table.parts(out):
                own = ids if part.ids is ids else part.ids[(part.ids >= ids[0]) & (part.ids <= ids[-1])]
                if own.size:
                    return Factors((Proportion(single.tensors, dim, own, int(ids[0])),))
        return factors

    def _with_bias(self, factors: Factors | None, bias: Tensor) -> Factors | None:
        """Factors after the addition of ``bias`` to the image of a weight with the same rows, None for other rows.

        All other factors are fixed then.
        """
        added = self._factors(bias)
        other = None if added is None else added.single_weight
        if factors is None or other is None or bias.dim() != 1:
            return None
        for rows in factors.proportions:
            if len(rows.tensors) == rows.power == 1 and same_rows(rows.rows, other.rows):
                rest = Factors(tuple(own for own in factors.proportions if own is not rows), factors.scalars)
                if rest.proportions or rest.scalars:
                    self._scalars.fixed.append((rest, self._scalars.runs))
                return Factors((Proportion((*rows.tensors, *other.tensors), rows.dim, rows.ids, rows.start),))
        return None

    def _sum(self, name: str, args: tuple[Any, ...], out: Tensor) -> None:
        tensors = tensors_in(args)
        first, *others = (self._factors(tensor) for tensor in tensors)
        factors = first if others else None
        for other in others:
            factors = None if factors is None else factors.merged_with(other)
        if factors is None and name == "add" and others and self._ends_with_rows(tensors[0]):
            factors = self._with_bias(first, tensors[1])
        if factors is None:
            self.fix(tensors)
        self._table.info(out).factors = factors
        self._pass_on_summed(args, out)

    def _ends_with_rows(self, tensor: Tensor) -> bool:
        """Whether the last dimension of ``tensor`` consists of the rows of a weight."""
        factors, parts = self._factors(tensor), self._table.parts(tensor)
        last = [part.ids for part in parts if part.dims == (tensor.dim() - 1,)]
        return factors is not None and any(np.array_equal(last, [rows.ids]) for rows in factors.proportions)

    def _set_summed(self, source: Tensor, out: Tensor) -> None:
        self._table.info(out).summed = tuple(part.ids for part in self._table.parts(source))

    def _pass_on_summed(self, args: tuple[Any, ...], out: Tensor) -> None:
        """Record in ``out`` the channels that ``args`` were summed over: a scalar may depend on their number."""
        remaining = len(self._table.parts(out))
        summed: dict[int, Ids] = {}
        for tensor in tensors_in(args):
            parts = self._table.parts(tensor)
            reduced = [part.ids for part in parts] if len(parts) > remaining else ()
            summed.update((id(ids), ids) for ids in (*self._table.info(tensor).summed, *reduced))
        self._table.info(out).summed = tuple(summed.values())

    def _channels(self, tensor: Tensor) -> list[Ids]:
        """Channels that a tensor carries or was summed over."""
        return [*(part.ids for part in self._table.parts(tensor)), *self._table.info(tensor).summed]

    def _carried(self, tensor: Tensor) -> Ids:
        return _joined([part.ids for part in self._table.parts(tensor)])


def _joined(ids: list[Ids]) -> Ids:
    if len(ids) == 1:
        return ids[0].ravel()
    return np.concatenate([some.ravel() for some in ids]) if ids else np.empty(0, np.int64)
