"""Labels the tensors of a forward pass while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.coupling.symbols import reasons
from lightning_prune.coupling.symbols.channel_ids import FIXED, Ids, Reason
from lightning_prune.coupling.symbols.sizes import Expression, Number, SizeOf
from lightning_prune.coupling.tracing import meta_kernels
from lightning_prune.coupling.tracing.proportionality import ProportionTracker
from lightning_prune.coupling.tracing.tensor_info import Constant, TensorInfo
from lightning_prune.coupling.tracing.trace import Labels, Part, Trace
from lightning_prune.network.tensors import tensors_in

ATTENTION = "multi_head_attention_forward"
_FACTS = "_lightning_prune_facts"  # set on the tensors of a pass


class Tracer(TorchDispatchMode):
    """Label the activations of the forward passes that run inside it."""

    def __init__(self, trace: Trace, rule_of: Callable[[Any], Any]) -> None:
        super().__init__()
        self.trace = trace
        self.slots = trace.slots
        self._rule_of = rule_of
        self.origins = ProportionTracker(self)
        self._paused = False
        self._running: tuple[Any, Sequence[Tensor]] = (None, ())  # an operation and its operands
        self.constants: dict[int, Constant] = {}  # by their storage, see values.py
        self.given: list[int] = []  # the numbers that the operation now running was called with in Python
        self.called = ""  # and its name there
        for name, tensor in trace.tensors.items():
            self.set_labels(tensor, trace.labels[name])
            self.facts(tensor).name = name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, then let its rule label the result."""
        kwargs = kwargs or {}
        out = meta_kernels.run(func, args, kwargs)
        if self._paused:
            return out
        tensors = tensors_in((args, kwargs) if kwargs else args)
        for tensor in tensors:
            self.reach(tensor)
        self._running = func, tensors
        self.trace.operations.append(func)
        rule = self._rule_of(func)
        if rule is None:
            self._give_up(tensors, "there is no rule for {} yet")
            return out
        try:
            rule(self, func, args, kwargs, out)
            self.origins.after(func, args, kwargs, out)
        except Exception as error:  # an operation called in a way that nobody thought of must not end the analysis
            self._give_up(tensors, f"the rule for {{}} does not know such a call ({type(error).__name__})")
        return out

    def _give_up(self, tensors: Sequence[Tensor], why: str) -> None:
        self.origins.leak(tensors)
        for part in (part for tensor in tensors for part in self.parts(tensor)):
            name = reasons.called(self._running[0])
            cure = "please report it, or leave its layers out with Scope(exclude=[...])"
            self.slots.freeze(part.ids.ravel(), self.at(f"{why.format(name)}; {cure}"))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Operations inside are not followed."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def facts(self, tensor: Tensor) -> TensorInfo:
        """What is known about ``tensor``; kept with it, and so for as long as it lives."""
        found = tensor.__dict__.get(_FACTS)
        if found is None or found.tracer is not self:
            found = tensor.__dict__[_FACTS] = TensorInfo(self)
        return found  # type: ignore[no-any-return]

    def reach(self, tensor: Tensor) -> None:
        """Note that the forward pass uses ``tensor``: a parameter, a buffer, or positions among some channels."""
        found = tensor.__dict__.get(_FACTS)
        if found is None or found.tracer is not self:
            return
        if found.name is not None:
            self.trace.reached.add(found.name)
        if found.positions is not None:
            ids, finder = found.positions
            self.slots.freeze(ids, self.says(f"uses the positions that {finder} finds among them"))

    def note_positions(self, tensor: Tensor, ids: Ids) -> None:
        """Say that ``tensor`` holds positions among the channels ``ids``: these have to stay if anything uses it."""
        self.facts(tensor).positions = ids, reasons.words(self._running[0])

    def parts(self, tensor: Tensor) -> Sequence[Part]:
        """The channels that ``tensor`` carries."""
        found = tensor.__dict__.get(_FACTS)
        return found.parts if found is not None and found.tracer is self else ()

    def set_parts(self, tensor: Tensor, parts: Sequence[Part]) -> None:
        """Say which channels ``tensor`` carries; what does not fit its shape is frozen."""
        fitting = []
        for part in parts:
            if part.ids.shape == tuple(tensor.shape[dim] for dim in part.dims):
                fitting.append(part)
            else:
                self.slots.freeze(part.ids.ravel(), self._lost)
        self.facts(tensor).parts = fitting

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

    def resolve(self, part: Part) -> Part:
        """``part`` with channels along one dimension only: what differs along the others is tied."""
        rows = part.rows()
        if len(rows) > 1:
            self.slots.tie(np.tile(rows[0], len(rows) - 1), rows[1:].ravel(), self._met_in_part)
        return Part.along(part.channel, rows[0])

    def set_labels(self, tensor: Tensor, labels: Sequence[Ids | None]) -> None:
        """Say which channels each dimension of ``tensor`` carries; what does not fit its shape is frozen."""
        present = zip(range(tensor.dim()), labels, strict=True)
        self.set_parts(tensor, [Part.along(dim, ids) for dim, ids in present if ids is not None and len(ids) > 1])

    def size(self, tensor: Tensor, dim: int) -> Expression:
        """The size of a dimension, as an expression of the channels that it carries."""
        for part in self.parts(tensor):
            if dim == part.channel:
                return SizeOf(part.rows()[0])
        return int(tensor.shape[dim])

    def number(self, tensor: Tensor, dim: int) -> int:
        """The size of a dimension, as a number that knows which channels it counts."""
        size, known = tensor.shape[dim], self.size(tensor, dim)
        return Number(size, known, self.trace.book) if isinstance(known, SizeOf) else size

    @property
    def where(self) -> str:
        """Qualified name of the module whose forward is running."""
        return self.trace.book.where

    def at(self, what: str) -> str:
        """A reason that begins with the module whose forward is running."""
        return f"{self.where!r}: {what}" if self.where else what

    def says(self, what: str) -> str:
        """A reason that begins with the module whose forward is running, and says what forward does there."""
        return self.at(f"forward {what}")

    def _lost(self, ids: Ids) -> str:
        return self.at(f"its way through {reasons.words(self._running[0])} could not be followed")

    def _met(self, ids: Ids) -> str:
        tensors = self._running[1]
        other = next((tensor for tensor in tensors if self._stays(tensor, ids)), None)
        if other is not None:
            return self._meets(other, f"whose size {len(ids)} cannot shrink")
        return self._meets(next((t for t in tensors if not self.parts(t)), None), "whose channels come from no layer")

    def _met_in_part(self, ids: Ids) -> str:
        mixed = (t for t in self._running[1] if any((part.ids == FIXED).any() for part in self.parts(t)))
        return self._meets(next(mixed, None), "of which only some channels come from a layer")

    def _meets(self, other: Tensor | None, why: str) -> str:
        return self.says(reasons.meets(self._running[0], other, None if other is None else self.name(other), why))

    def _stays(self, tensor: Tensor, ids: Ids) -> bool:
        """Whether ``tensor`` has a dimension of the size of ``ids`` without channels, and not these elsewhere."""
        parts = self.parts(tensor)
        taken = {dim for part in parts for dim in part.dims}
        alike = any(size == len(ids) for dim, size in enumerate(tensor.shape) if dim not in taken)
        return alike and not any(np.isin(part.ids, ids).any() for part in parts)

    def check_size(self, tensor: Tensor, cut: bool = False) -> None:
        """Note the shape of ``tensor``: what it becomes with fewer channels can be foreseen, and is checked.

        Args:
            tensor: The result of a reshape, or a part that was ``cut`` out.
            cut: Whether it was.
        """
        channels = [self.size(tensor, dim) for dim in range(tensor.dim())]
        labels = [size.ids if isinstance(size, SizeOf) else None for size in channels]
        self.trace.sizes.append((self.where, cut, tuple(tensor.shape), labels))

    def bind(self, number: int, ids: Ids) -> None:
        """Say that ``number`` counts the channels ``ids``, which are a group of their own from now on."""
        known = ids[ids != FIXED]
        self.trace.pieces.setdefault(known.tobytes(), known)
        self.trace.book.equate(number, Number(len(ids), SizeOf(ids), self.trace.book))

    def balance(self, rows: Sequence[Ids], where: str) -> None:
        """Say that each of ``rows`` has to lose as many channels as the others, whichever they are."""
        if len(rows) > 1:
            self.trace.balances.append(([row.ravel() for row in rows], where))

    def tie(self, a: Ids | None, b: Ids | None, reason: str | None = None) -> None:
        """Tie two labels index by index; where one side is no channel, the other side has to stay."""
        if a is None and b is None:
            return
        if a is None or b is None:
            self.slots.freeze(b if a is None else a, reason or self._met)  # type: ignore[arg-type]
            return
        self.slots.tie(a, b, reason or self._met_in_part)

    def freeze(self, tensor: Tensor, reason: Reason, dims: Sequence[int] | None = None) -> None:
        """Keep every channel that ``tensor`` carries along ``dims`` (all of them by default)."""
        for dim, label in enumerate(self.labels(tensor)):
            if label is not None and (dims is None or dim in dims):
                self.slots.freeze(label, reason)

    def name(self, tensor: Tensor) -> str | None:
        """The qualified name of a parameter or buffer, also behind a cast or transpose of it."""
        return self.facts(tensor).name

    def same_parameter(self, source: Tensor, out: Tensor) -> None:
        """Say that ``out`` is ``source`` in another layout: its name and its producer stay known."""
        known, new = self.facts(source), self.facts(out)
        new.name, new.producer = known.name or new.name, known.producer or new.producer
