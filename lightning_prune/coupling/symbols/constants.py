"""The constants in calls of operations, which may have been computed from a width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_prune.coupling.symbols.aten import op_name
from lightning_prune.network.tensors import tensors_in

_LITERAL = torch.ops.aten.lift_fresh.default  # makes a tensor of Python numbers
_INTEGERS = ("int", "Optional[int]", "List[int]")
_WITH_INTEGERS = frozenset(("linspace", "logspace", "eye", "roll", "topk", "kthvalue", "tril", "triu", "diagonal"))
_SETTINGS = frozenset(("padding", "dilation", "output_padding", "kernel_size", "output_size", "eps"))
_POSITIONAL = frozenset(("slice", "select", "constant_pad_nd"))  # their integers are positions
_NUMBERS = ("Tensor", "number", "float", "Optional[Tensor]", "Optional[number]", "Optional[float]")


class Constants(tuple[float, ...]):
    """The numbers that one operation computes with.

    Attributes:
        where: Qualified name of the module whose forward runs it.
    """

    where: str = ""

    @classmethod
    def at(cls, where: str, values: Iterable[float]) -> Constants:
        """``values``, found in the forward of the module ``where``."""
        found = cls(values)
        found.where = where
        return found


def scalar_of(func: Any, args: tuple[Any, ...]) -> float | None:
    """The scalar that an ATen call multiplies a tensor by, None for other calls."""
    if len(args) < 2 or (name := op_name(func)) not in ("mul", "div"):
        return None
    number = next((a for a in args[:2] if is_number(a)), None)
    tensor = next((a for a in args[:2] if isinstance(a, Tensor) and not is_number(a)), None)
    if number is None or tensor is None or (isinstance(number, Tensor) and not tensor.is_meta):
        return None  # where tensors have values, a tensor with one value is not a constant of the code
    if name == "mul":
        return float(number)
    return 1 / float(number) if number is args[1] and float(number) else None


def constants_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], on_meta: bool) -> tuple[float, ...]:
    """The numbers that an ATen call computes with, apart from the factor of ``scalar_of``; () for most calls.

    Args:
        func: The overload.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        on_meta: Whether the network is on the meta device, where the only tensors with values are constants.
    """
    if func is _LITERAL:
        seen = not args[0].is_meta and (args[0].dim() > 0 or not on_meta)
        return numbers_in(args[0].tolist()) if seen else ()
    found = [args[n] if n < len(args) else kwargs.get(name) for n, name in _number_arguments(func)]
    flat = (item for value in found for item in (value if isinstance(value, (list, tuple)) else (value,)))
    numbers: list[Any] = [value for value in flat if _is_value(value)]
    if not numbers:
        return ()
    with_tensors = on_meta and _on_meta(args, kwargs)
    return tuple(float(value) for value in numbers if with_tensors or not isinstance(value, Tensor))


@cache
def setting_positions(func: Any) -> tuple[int, ...]:
    """Positions of the arguments that configure an ATen overload, such as its padding or the limits of a slice.

    The number of groups of a convolution is not among them.
    """
    arguments = func._schema.arguments
    if has_positional_settings(func):
        return tuple(range(1, len(arguments)))
    names = _SETTINGS | {"stride"} if any(a.name == "padding" for a in arguments) else _SETTINGS
    return tuple(n for n, a in enumerate(arguments) if a.name in names)


def settings_at(positions: tuple[int, ...], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a call at ``positions``, without those that it leaves out."""
    return tuple([args[n] for n in positions if n < len(args)])


def same_settings(before: Sequence[Any], now: Sequence[Any]) -> bool:
    """Whether the settings of two passes are equal, except where ``before`` is None: those may follow a width."""
    return len(before) == len(now) and all(a is None or a == b for a, b in zip(before, now, strict=True))


@cache
def has_positional_settings(func: Any) -> bool:
    """Whether the settings of an ATen overload are positions in a tensor, which follow a width if they cut channels."""
    return op_name(func) in _POSITIONAL


@cache
def _number_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """Positions and names of the arguments of an ATen overload that it computes with and that may be numbers."""
    name = op_name(func)
    if name.startswith(("native_", "_native_", "convolution")):
        return ()
    kinds = (*_NUMBERS, *_INTEGERS) if name in _WITH_INTEGERS else _NUMBERS
    return tuple((n, a.name) for n, a in enumerate(func._schema.arguments) if str(a.type) in kinds)


def _on_meta(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return any(t.is_meta for t in tensors_in(args)) or (isinstance(device, torch.device) and device.type == "meta")


def numbers_in(data: Any) -> tuple[float, ...]:
    """The numbers in ``data``, which a tensor is made of; () where it contains anything else."""
    try:
        return tuple(np.asarray(data, dtype=np.float64).ravel().tolist())
    except (TypeError, ValueError, RuntimeError):
        return ()


def is_number(value: Any) -> bool:
    """Whether ``value`` is a number, or a tensor of one number that is not on the meta device."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_meta and not value.is_complex() and value.dtype != torch.bool
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_value(value: Any) -> bool:
    """Whether ``value`` is a number in the sense of ``is_number``, or a bool."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_meta and not value.is_complex()
    return isinstance(value, (int, float))
