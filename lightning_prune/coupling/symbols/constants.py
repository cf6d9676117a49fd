"""The numbers that operations compute with, which a width may have a part in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LITERAL = torch.ops.aten.lift_fresh.default  # a tensor is made of what Python knows
_INTEGERS = ("int", "Optional[int]", "List[int]")
_COUNTING = frozenset(("linspace", "logspace", "eye", "roll", "topk", "kthvalue", "tril", "triu", "diagonal"))
_SETTINGS = frozenset(("padding", "dilation", "output_padding", "kernel_size", "output_size", "eps"))
_WHERE = frozenset(("slice", "select", "constant_pad_nd"))  # their whole numbers are places
_NUMBERS = ("Tensor", "number", "float", "Optional[Tensor]", "Optional[number]", "Optional[float]")


class Constants(tuple[float, ...]):
    """Numbers that one operation computes with.

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
    """The factor that an ATen call multiplies a tensor by, None where it is no such call."""
    if len(args) < 2 or (name := name_of(func)) not in ("mul", "div"):
        return None
    number = next((a for a in args[:2] if is_number(a)), None)
    tensor = next((a for a in args[:2] if isinstance(a, Tensor) and not is_number(a)), None)
    if number is None or tensor is None or (isinstance(number, Tensor) and not tensor.is_meta):
        return None  # beside tensors with values, a tensor with one may hold anything
    if name == "mul":
        return float(number)
    return 1 / float(number) if number is args[1] and float(number) else None


def constants_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], on_meta: bool) -> tuple[float, ...]:
    """The numbers that an ATen call computes with, where ``scalar_of`` sees no factor; () for most calls.

    Args:
        func: The overload.
        args: Its arguments.
        kwargs: The others.
        on_meta: Whether tensors with values are the numbers of the code, as all others are on the meta device.
    """
    if func is _LITERAL:
        seen = not args[0].is_meta and (args[0].dim() > 0 or not on_meta)
        return numbers_in(args[0].tolist()) if seen else ()
    found = [args[n] if n < len(args) else kwargs.get(name) for n, name in _places(func)]
    flat = (item for value in found for item in (value if isinstance(value, (list, tuple)) else (value,)))
    numbers: list[Any] = [value for value in flat if _is_value(value)]
    if not numbers:
        return ()
    with_tensors = on_meta and _reaches_meta(args, kwargs)
    return tuple(float(value) for value in numbers if with_tensors or not isinstance(value, Tensor))


@cache
def setting_places(func: Any) -> tuple[int, ...]:
    """Positions of the numbers that say how calls of an ATen overload work, as a padding does or where to cut.

    Not of how many groups a convolution has.
    """
    arguments = func._schema.arguments
    if takes_places(func):
        return tuple(range(1, len(arguments)))
    names = _SETTINGS | {"stride"} if any(a.name == "padding" for a in arguments) else _SETTINGS
    return tuple(n for n, a in enumerate(arguments) if a.name in names)


def settings_at(places: tuple[int, ...], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a call at ``places``, but for those that it leaves out."""
    return tuple([args[n] for n in places if n < len(args)])


def same_settings(before: Sequence[Any], now: Sequence[Any]) -> bool:
    """Whether the settings of two passes are the same, but for those that may follow a width: None in ``before``."""
    return len(before) == len(now) and all(a is None or a == b for a, b in zip(before, now, strict=True))


@cache
def takes_places(func: Any) -> bool:
    """Whether the settings of an ATen overload say where in a tensor: they follow a width where they cut channels."""
    return name_of(func) in _WHERE


@cache
def _places(func: Any) -> tuple[tuple[int, str], ...]:
    """Positions and names of the arguments of an ATen overload that may be numbers it computes with."""
    name = name_of(func)
    if name.startswith(("native_", "_native_", "convolution")):
        return ()
    kinds = (*_NUMBERS, *_INTEGERS) if name in _COUNTING else _NUMBERS
    return tuple((n, a.name) for n, a in enumerate(func._schema.arguments) if str(a.type) in kinds)


def _reaches_meta(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return any(t.is_meta for t in every_tensor(args)) or (isinstance(device, torch.device) and device.type == "meta")


def numbers_in(data: Any) -> tuple[float, ...]:
    """The numbers that a tensor is made of; () where it is made of something else."""
    try:
        return tuple(np.asarray(data, dtype=np.float64).ravel().tolist())
    except (TypeError, ValueError, RuntimeError):
        return ()


def is_number(value: Any) -> bool:
    """A number, or a tensor that was made from numbers: the others are on the meta device."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_meta and not value.is_complex() and value.dtype != torch.bool
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_value(value: Any) -> bool:
    """What ``is_number`` takes, or whether something is the case."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_meta and not value.is_complex()
    return isinstance(value, (int, float))


@cache
def name_of(func: Any) -> str:
    """``add`` for ``aten::add_.Tensor``."""
    name: str = func._schema.name.removeprefix("aten::")
    return name if name.startswith("__") else name.rstrip("_")


def every_tensor(args: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments of a call, and in lists of them."""
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from every_tensor(value)
