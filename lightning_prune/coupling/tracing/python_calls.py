"""Function modes that see the Python calls of a forward pass: the integers that it reads from shapes and passes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_prune.coupling.symbols.constants import numbers_in
from lightning_prune.coupling.symbols.sizes import SizeOf
from lightning_prune.coupling.symbols.traced_ints import TracedInt
from lightning_prune.coupling.tracing.constant_values import all_nonzero_masked
from lightning_prune.coupling.tracing.given_shapes import label_by_sizes
from lightning_prune.coupling.tracing.tracer import ATTENTION, Tracer

_FACTORIES = {
    *("zeros", "ones", "empty", "full", "rand", "randn"),
    *("new_zeros", "new_ones", "new_empty", "new_full"),
}
_WITH_SIZES = _FACTORIES | {
    *("view", "reshape", "unflatten", "expand", "broadcast_to", "repeat", "narrow", "__getitem__", "__setitem__"),
    *("split", "chunk", "tensor_split", "split_with_sizes", "unsafe_split", "unsafe_chunk"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("layer_norm", "rms_norm"),
}
_EMPTY = ("zeros", "empty")
_LITERALS = {"tensor", "as_tensor", "asarray", "new_tensor"}
_TO_PYTHON = {"numpy", "tolist", "__array__", "__dlpack__", "data_ptr"}
_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d}
_SHAPE, _SIZE = Tensor.shape.__get__, Tensor.size  # type: ignore[attr-defined]


class Sizes(tuple[int, ...]):
    """A shape whose entries may be traced integers; ``torch.Size`` converts them to plain ones."""

    def numel(self) -> int:
        """The number of elements."""
        product: int = 1
        for size in self:
            product = size * product
        return product

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return Sizes(found) if isinstance(index, slice) else found


class WithoutDropout(TorchFunctionMode):
    """Function mode in which dropout returns its input."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``."""
        if func in _DROPOUTS:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


class Literals(TorchFunctionMode):
    """Function mode that passes the numbers of new tensors on the meta device to ``record``.

    The numbers are lost afterwards: tensors on the meta device hold no values.
    """

    def __init__(self, record: Callable[[tuple[float, ...]], None]) -> None:
        super().__init__()
        self.record = record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``."""
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _LITERALS:
            self.record(_literal(func.__name__, args, kwargs or {}, out))
        return out


def _literal(name: str, args: Any, kwargs: Any, out: Any) -> tuple[float, ...]:
    given = args[name.startswith("new") :]
    data = given[0] if given else kwargs.get("data", kwargs.get("obj"))
    return numbers_in(data) if out.is_meta and not isinstance(data, Tensor) else ()


class CallRecorder(TorchFunctionMode):
    """Function mode that returns shapes of traced integers, and records the integers of each call in ``tracer``."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``."""
        kwargs = kwargs or {}
        if func == _SHAPE:
            return self._shape(args[0])
        if func == _SIZE:
            shape = self._shape(args[0])
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return shape if dim is None else shape[dim]
        if func is F.multi_head_attention_forward:
            return self._attention(func, args, kwargs)
        if func is F.batch_norm and args[0].numel() == 0:
            return self._empty_batch_norm(func, args, kwargs)
        if func in _DROPOUTS:
            return self._dropout(func, args, kwargs)
        name = getattr(func, "__name__", "")
        if name in _TO_PYTHON:
            self.tracer.freeze(
                args[0], self.tracer.forward_reason("passes it to NumPy or Python, where it cannot be followed")
            )
            self.tracer.proportions.mark_read_by_python(args[0])
        if name in _LITERALS:
            out = func(*args, **kwargs)
            self.tracer.proportions.record_constants(_literal(name, args, kwargs, out), (out,))
            return out
        if name not in _WITH_SIZES:
            return func(*args, **kwargs)
        given: list[int] = []
        _add_integers((args, kwargs), given)
        self.tracer.call_integers, self.tracer.call_name = given, name
        try:
            out = func(*args, **kwargs)
            if name in ("layer_norm", "rms_norm"):
                self._equate_norm(args)
            if name in _FACTORIES and isinstance(out, Tensor):
                self._label(out, zero=name.endswith(_EMPTY))
            return out
        finally:
            self.tracer.call_integers, self.tracer.call_name = [], ""

    def _equate_norm(self, args: tuple[Any, ...]) -> None:
        source, shape = args[0], args[1]
        for dim, number in enumerate(shape, start=source.dim() - len(shape)):
            if isinstance(number, TracedInt):
                self.tracer.trace.size_equations.equate(number, self.tracer.traced_size(source, dim))

    def _label(self, made: Tensor, zero: bool) -> None:
        label_by_sizes(self.tracer, made)
        if not zero:
            self.tracer.set_labels(made, all_nonzero_masked(self.tracer, self.tracer.labels(made)))

    def _shape(self, tensor: Tensor) -> Any:
        shape = tensor.shape
        sizes = [self.tracer.size_expression(tensor, dim) for dim in range(len(shape))]
        if not any(isinstance(size, SizeOf) for size in sizes):
            return shape
        return Sizes(self.tracer.traced_size(tensor, dim) for dim in range(len(shape)))

    def _dropout(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Label the result of dropout as its input: the same in eval and in train mode."""
        source = args[0] if args else kwargs["input"]
        with self.tracer.paused():
            out = func(*args, **kwargs)
        self.tracer.set_parts(out, self.tracer.parts(source))
        self.tracer.proportions.copy(source, out)
        return out

    def _empty_batch_norm(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace batch norm of an empty tensor, where PyTorch follows a code path that reads only the first channel."""
        with self.tracer.paused():
            out = func(*args, **kwargs)
        labels = self.tracer.labels(args[0])
        for tensor in (*args[1:5], *kwargs.values()):
            if isinstance(tensor, Tensor):
                self.tracer.mark_reached(tensor)
                self.tracer.tie(labels[1], self.tracer.labels(tensor)[0])
        self.tracer.set_labels(out, labels)
        return out

    def _attention(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record the sizes inside PyTorch's attention, which computes them without traced integers."""
        query, heads, out_proj, trace = args[0], args[4], args[11], self.tracer.trace
        self.tracer.call_name = ATTENTION
        try:
            out = func(*args, **kwargs)
        finally:
            self.tracer.call_name = ""
        width, equations = self.tracer.traced_size(out_proj, 1), trace.size_equations
        equations.equate(width, self.tracer.traced_size(query, query.dim() - 1))
        channels = self.tracer.labels(out_proj)[1]
        if int(heads) == 1 and channels is not None:
            trace.attended.append(channels)
            if trace.add_split(channels) in trace.heads:
                self.tracer.channel_ids.tie_all(channels)
        elif trace.heads:
            head_dim = int(width) // int(heads)
            number = heads if isinstance(heads, TracedInt) else equations.tagged(heads, "num_heads")
            equations.equate(width // head_dim, number)
        return out


def _add_integers(values: Iterable[Any], found: list[int]) -> None:
    """Append the integers among the arguments of a call to ``found``, in order."""
    for value in values:
        if isinstance(value, int):
            if not isinstance(value, bool):
                found.append(value)
        elif isinstance(value, (tuple, list)):
            _add_integers(value, found)
        elif isinstance(value, dict):
            _add_integers(value.values(), found)
        elif isinstance(value, slice):
            _add_integers((value.start, value.stop), found)
