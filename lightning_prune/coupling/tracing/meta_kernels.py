"""Faster meta kernels for common operations: PyTorch's own are written in Python.

PyTorch needs a millisecond for a batch norm on the meta device, ten times as long as the rest of its analysis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

_UNARY = frozenset(
    ("relu", "silu", "gelu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu", "relu6",
     "exp", "erf", "sqrt", "rsqrt", "neg", "abs", "clamp", "clamp_min", "softplus", "mish")
)  # fmt: skip
_BINARY = frozenset(("add", "sub", "mul", "div"))
_BATCH_NORMS = frozenset(("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"))


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an ATen call, on the meta device from a kernel of this module where there is one."""
    first = args[0] if args else None
    if isinstance(first, Tensor) and first.is_meta and first.is_floating_point():
        kernel = _kernel(func)
        found = kernel(*args, **kwargs) if kernel is not None else None
        if found is not None:
            return found
    return func(*args, **kwargs)


@cache
def _kernel(func: Any) -> Callable[..., Any] | None:
    name = func._schema.name.removeprefix("aten::")
    plain = name.rstrip("_")
    if plain in _UNARY:
        return _in_place if name.endswith("_") else _same_shape
    if plain in _BINARY:
        return _binary_in_place if name.endswith("_") else _binary
    if name in _BATCH_NORMS:
        return _batch_norm
    return _OTHERS.get(name)


def _same_shape(source: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    bounded_by_tensors = any(isinstance(other, Tensor) for other in (*args, *kwargs.values()))
    return None if bounded_by_tensors else source.clone()


def _in_place(source: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    bounded_by_tensors = any(isinstance(other, Tensor) for other in (*args, *kwargs.values()))
    return None if bounded_by_tensors else source


def _binary(source: Tensor, other: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    if _same(source, other):
        return source.clone() if source.stride() == other.stride() else None
    if not isinstance(other, Tensor) or not other.is_meta or other.dtype != source.dtype:
        return None
    full, small = (source, other) if source.numel() >= other.numel() else (other, source)
    offset = full.dim() - small.dim()
    fits = offset >= 0 and all(s in (1, full.shape[offset + dim]) for dim, s in enumerate(small.shape))
    return full.clone() if fits and small.dim() > 0 and full.is_contiguous() else None


def _binary_in_place(source: Tensor, other: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    return source if _same(source, other) else None


def _same(source: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and other.is_meta and (other.shape, other.dtype) == (source.shape, source.dtype)


def _batch_norm(source: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    width = source.shape[1:2]
    tensors = [value for value in args[:4] if isinstance(value, Tensor)]
    if kwargs or any(tensor.shape != width or tensor.dtype != source.dtype for tensor in tensors):
        return None
    statistics = _empty(width, source)
    return source.clone(), statistics, statistics


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _layer_norm(source: Tensor, shape: list[int], *args: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    tensors = [value for value in args[:2] if isinstance(value, Tensor)]
    rest = source.dim() - len(shape)
    if not source.is_contiguous() or tuple(source.shape[rest:]) != tuple(shape):
        return None
    if any(tuple(tensor.shape) != tuple(shape) or tensor.dtype != source.dtype for tensor in tensors):
        return None
    statistics = _empty([*source.shape[:rest], *[1] * len(shape)], source)
    return source.clone(), statistics, statistics


def _addmm(bias: Tensor, left: Tensor, right: Tensor, **kwargs: Any) -> Tensor | None:
    fits = left.shape[1] == right.shape[0] and bias.shape == right.shape[1:2]
    fits = fits and bias.dtype == left.dtype == right.dtype
    return _empty((left.shape[0], right.shape[1]), left) if fits and not kwargs else None


def _mean(source: Tensor, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor | None:
    if not isinstance(dims, (list, tuple)) or not dims or kwargs:
        return None
    reduced = {dim % source.dim() for dim in dims if -source.dim() <= dim < source.dim()}
    if len(reduced) != len(dims):
        return None
    sizes = [1 if dim in reduced else size for dim, size in enumerate(source.shape) if keepdim or dim not in reduced]
    return _empty(sizes, source) if source.is_contiguous() else None


def _convolution(
    source: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int,
) -> Tensor | None:  # fmt: skip
    spatial = source.dim() - 2
    same_length = all(len(numbers) == spatial for numbers in (stride, padding, dilation))
    fits = same_length and not transposed and weight.dim() == source.dim() and source.dtype == weight.dtype
    if not fits or source.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        return None
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        return None
    if not (source.is_contiguous() and weight.is_contiguous()):
        return None
    sizes = [
        (size + 2 * pad - spacing * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, spacing in zip(
            source.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
        )
    ]
    return _empty((source.shape[0], weight.shape[0], *sizes), source) if min(sizes, default=0) > 0 else None


_OTHERS: dict[str, Callable[..., Any]] = {
    "addmm": _addmm,
    "native_layer_norm": _layer_norm,
    "mean": _mean,
    "convolution": _convolution,
}
