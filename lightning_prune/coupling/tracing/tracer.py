"""The dispatch mode that labels the tensors of a forward pass while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.coupling.symbols import reasons
from lightning_prune.coupling.symbols.channel_ids import NO_CHANNEL, Ids, Reason
from lightning_prune.coupling.symbols.sizes import Expression, SizeOf
from lightning_prune.coupling.symbols.traced_ints import TracedInt
from lightning_prune.coupling.tracing import meta_kernels
from lightning_prune.coupling.tracing.proportionality import ProportionTracker
from lightning_prune.coupling.tracing.tensor_info import Constant, TensorInfo, TensorTable
from lightning_prune.coupling.tracing.trace import Labels, Part, Trace
from lightning_prune.network.tensors import tensors_in

ATTENTION = "multi_head_attention_forward"


class Tracer(TorchDispatchMode):
    """Dispatch mode that labels the activations of the forward passes inside it with channel ids.

    Args:
        trace: Collects the results.
        rule_of: Returns the rule of an ATen overload, None where there is none.

    Attributes:
        channel_ids: The channel ids of ``trace``, with their ties.
        proportions: Tracks what tensors are proportional to.
        constants: Constant tensors by their storage, see ``constant_values``.
        call_integers: The integers among the arguments of the Python function that is running.
        call_name: The name of that function, empty where no function with sizes is running.
    """

    def __init__(self, trace: Trace, rule_of: Callable[[Any], Any]) -> None:
        super().__init__()
        self.trace = trace
        self.channel_ids = trace.channel_ids
        self._rule_of = rule_of
        self._table = TensorTable()
        self.proportions = ProportionTracker(trace, self._table)
        self._paused = False
        self._running: tuple[Any, Sequence[Tensor]] = (None, ())  # an operation and its operands
        self.constants: dict[int, Constant] = {}
        self.call_integers: list[int] = []
        self.call_name = ""
        for name, tensor in trace.tensors.items():
            self.set_labels(tensor, trace.labels[name])
            self.info(tensor).name = name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, then let its rule label the result."""
        kwargs = kwargs or {}
        out = meta_kernels.run(func, args, kwargs)
        if self._paused:
            return out
        tensors = tensors_in((args, kwargs) if kwargs else args)
        for tensor in tensors:
            self.mark_reached(tensor)
        self._running = func, tensors
        self.trace.operations.append(func)
        rule = self._rule_of(func)
        if rule is None:
            self._freeze_operands(tensors, "there is no rule for {} yet")
            return out
        try:
            rule(self, func, args, kwargs, out)
            self.proportions.after(func, args, kwargs, out)
        except Exception as error:  # a call that a rule does not support must not end the analysis
            self._freeze_operands(tensors, f"the rule for {{}} does not support this call ({type(error).__name__})")
        return out

    def _freeze_operands(self, tensors: Sequence[Tensor], why: str) -> None:
        self.proportions.fix(tensors)
        for part in (part for tensor in tensors for part in self.parts(tensor)):
            name = reasons.called_function(self._running[0])
            cure = "please report it, or leave its layers out with Scope(exclude=[...])"
            self.channel_ids.freeze(part.ids.ravel(), self.reason_at(f"{why.format(name)}; {cure}"))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which operations run without being traced."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    # What is recorded for each tensor

    def info(self, tensor: Tensor) -> TensorInfo:
        """The information that this pass keeps for ``tensor``."""
        return self._table.info(tensor)

    def name(self, tensor: Tensor) -> str | None:
        """The qualified name of a parameter or buffer, also of its casts and transposes."""
        return self._table.name(tensor)

    def parts(self, tensor: Tensor) -> Sequence[Part]:
        """The channels that ``tensor`` carries."""
        return self._table.parts(tensor)

    def mark_reached(self, tensor: Tensor) -> None:
        """Record that the forward pass uses ``tensor``: a parameter, a buffer, or positions of some channels."""
        found = self._table.find(tensor)
        if found is None:
            return
        if found.name is not None:
            self.trace.reached.add(found.name)
        if found.positions is not None:
            ids, finder = found.positions
            self.channel_ids.freeze(ids, self.forward_reason(f"uses the positions that {finder} finds among them"))

    def set_positions(self, tensor: Tensor, ids: Ids) -> None:
        """Record that ``tensor`` holds positions of the channels ``ids``, which are frozen if any operation uses it."""
        self.info(tensor).positions = ids, reasons.public_name(self._running[0])

    def set_parts(self, tensor: Tensor, parts: Sequence[Part]) -> None:
        """Set the channels that ``tensor`` carries; parts that do not fit its shape are frozen."""
        fitting = []
        for part in parts:
            if part.ids.shape == tuple(tensor.shape[dim] for dim in part.dims):
                fitting.append(part)
            else:
                self.channel_ids.freeze(part.ids.ravel(), self._not_followed)
        self.info(tensor).parts = fitting

    def labels(self, tensor: Tensor) -> Labels:
        """One label or None for each dimension of ``tensor``; a part over several dimensions is resolved into one."""
        labels: Labels = [None] * tensor.dim()
        several = False
        for part in self.parts(tensor):
            if len(part.dims) > 1:
                several = True
                part = self.resolve(part)
            labels[part.channel] = part.ids
        if several:
            self.set_labels(tensor, labels)
        return labels

    def set_labels(self, tensor: Tensor, labels: Sequence[Ids | None]) -> None:
        """Set the channels of each dimension of ``tensor``; labels that do not fit its shape are frozen."""
        present = zip(range(tensor.dim()), labels, strict=True)
        self.set_parts(tensor, [Part.along(dim, ids) for dim, ids in present if ids is not None and len(ids) > 1])

    def resolve(self, part: Part) -> Part:
        """``part`` with channels along one dimension only: ids that differ along the others are tied."""
        rows = part.rows()
        if len(rows) > 1:
            self.channel_ids.tie(np.tile(rows[0], len(rows) - 1), rows[1:].ravel(), self._partly_paired)
        return Part.along(part.channel, rows[0])

    def same_parameter(self, source: Tensor, out: Tensor) -> None:
        """Record that ``out`` is ``source`` in another layout, with the same name and producer."""
        known, new = self.info(source), self.info(out)
        new.name, new.producer = known.name or new.name, known.producer or new.producer

    # Ties, frozen channels and sizes

    def tie(self, a: Ids | None, b: Ids | None, reason: str | None = None) -> None:
        """Tie two labels index by index; where one side carries no channels, the other side is frozen."""
        if a is None and b is None:
            return
        if a is None or b is None:
            self.channel_ids.freeze(b if a is None else a, reason or self._paired)  # type: ignore[arg-type]
            return
        self.channel_ids.tie(a, b, reason or self._partly_paired)

    def freeze(self, tensor: Tensor, reason: Reason, dims: Sequence[int] | None = None) -> None:
        """Freeze every channel that ``tensor`` carries along ``dims`` (by default along all dimensions)."""
        for dim, label in enumerate(self.labels(tensor)):
            if label is not None and (dims is None or dim in dims):
                self.channel_ids.freeze(label, reason)

    def balance(self, rows: Sequence[Ids], where: str) -> None:
        """Require that each of ``rows`` loses the same number of channels, not necessarily the same indices."""
        if len(rows) > 1:
            self.trace.balances.append(([row.ravel() for row in rows], where))

    def size_expression(self, tensor: Tensor, dim: int) -> Expression:
        """The size of a dimension, as an expression of the channels that it carries."""
        for part in self.parts(tensor):
            if dim == part.channel:
                return SizeOf(part.rows()[0])
        return int(tensor.shape[dim])

    def traced_size(self, tensor: Tensor, dim: int) -> int:
        """The size of a dimension, as a ``TracedInt`` where the dimension carries channels."""
        size, known = tensor.shape[dim], self.size_expression(tensor, dim)
        return TracedInt(size, known, self.trace.size_equations) if isinstance(known, SizeOf) else size

    def bind_size(self, number: int, ids: Ids) -> None:
        """Require that ``number`` equals the count of the channels ``ids``, which form a group of their own."""
        known = ids[ids != NO_CHANNEL]
        self.trace.pieces.setdefault(known.tobytes(), known)
        self.trace.size_equations.equate(number, TracedInt(len(ids), SizeOf(ids), self.trace.size_equations))

    def record_shape(self, tensor: Tensor, cut: bool = False) -> None:
        """Record the shape of ``tensor`` as an expression of its channels, so that a smaller network can be checked.

        Args:
            tensor: The result of a reshape, or of a slice, selection or split.
            cut: Whether it is the result of a slice, selection or split.
        """
        channels = [self.size_expression(tensor, dim) for dim in range(tensor.dim())]
        labels = [size.ids if isinstance(size, SizeOf) else None for size in channels]
        self.trace.shapes.append((self.where, cut, tuple(tensor.shape), labels))

    # Reasons

    @property
    def where(self) -> str:
        """Qualified name of the module whose forward is running."""
        return self.trace.size_equations.where

    def reason_at(self, what: str) -> str:
        """A reason that begins with the name of the module whose forward is running."""
        return f"{self.where!r}: {what}" if self.where else what

    def forward_reason(self, what: str) -> str:
        """The reason "'module': forward ``what``", for the module whose forward is running."""
        return self.reason_at(f"forward {what}")

    def _not_followed(self, ids: Ids) -> str:
        return self.reason_at(f"these channels could not be followed through {reasons.public_name(self._running[0])}")

    def _paired(self, ids: Ids) -> str:
        tensors = self._running[1]
        other = next((tensor for tensor in tensors if self._has_fixed_size(tensor, ids)), None)
        if other is not None:
            return self._pairing(other, f"whose size {len(ids)} cannot shrink")
        other = next((tensor for tensor in tensors if not self.parts(tensor)), None)
        return self._pairing(other, "whose channels come from no layer")

    def _partly_paired(self, ids: Ids) -> str:
        mixed = (t for t in self._running[1] if any((part.ids == NO_CHANNEL).any() for part in self.parts(t)))
        return self._pairing(next(mixed, None), "of which only some channels come from a layer")

    def _pairing(self, other: Tensor | None, why: str) -> str:
        name = None if other is None else self.name(other)
        return self.forward_reason(reasons.pairing(self._running[0], other, name, why))

    def _has_fixed_size(self, tensor: Tensor, ids: Ids) -> bool:
        """Whether ``tensor`` has an unlabelled dimension of the size of ``ids``, and carries none of ``ids``."""
        parts = self.parts(tensor)
        taken = {dim for part in parts for dim in part.dims}
        same_size = any(size == len(ids) for dim, size in enumerate(tensor.shape) if dim not in taken)
        return same_size and not any(np.isin(part.ids, ids).any() for part in parts)
