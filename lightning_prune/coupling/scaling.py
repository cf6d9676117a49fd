"""Scalars that forward computes from a width, such as the 1/√d of attention.

With fewer channels such a scalar is another one, and the network would no longer equal the one with zeros in their
place. Where the scaled tensor is a linear image of some weights, these take up the difference. So a pass notes every
scalar that multiplies a tensor, and which rows of which weights the tensor is linear in; a pass of the smaller network
shows which scalars have changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lightning_prune.coupling.slots import FIXED, Ids

if TYPE_CHECKING:
    from lightning_prune.coupling.tracer import Tracer

_VIEWS = frozenset(
    ("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "t", "transpose", "permute", "expand",
     "select", "unbind", "slice", "split", "split_with_sizes", "alias", "clone", "detach", "_to_copy", "contiguous")
)  # fmt: skip
_TAKING = frozenset(("select", "unbind", "slice", "split", "split_with_sizes"))
_LAYERS = {
    "linear": (1, 2), "addmm": (2, 0), "mm": (1, None), "convolution": (1, 2), "native_layer_norm": (2, 3),
    "native_batch_norm": (1, 2), "_native_batch_norm_legit": (1, 2), "_native_batch_norm_legit_no_training": (1, 2),
    "_batch_norm_with_update": (1, 2), "cudnn_batch_norm": (1, 2), "native_group_norm": (1, 2),
}  # fmt: skip  # operation -> positions of weight and bias


@dataclass(frozen=True, eq=False)
class Origin:
    """The weights that a tensor is linear in.

    Attributes:
        ids: Slots of their rows, in no order.
        tensors: Names of the weight and the bias that have these rows.
        power: How often they are a factor.
        seen: Numbers of the scalars that the tensor has been multiplied by since.
    """

    ids: Ids
    tensors: tuple[str, ...]
    power: int = 1
    seen: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Scalar:
    """A scalar that a tensor was multiplied by.

    Attributes:
        value: The factor.
        origin: What the tensor is linear in, None where that is not known.
        widths: Slots of channels that the tensor carries or was summed over.
        where: Qualified name of the module whose forward multiplies.
        run: Number of the pass.
    """

    value: float
    origin: Origin | None
    widths: Ids
    where: str
    run: int


@dataclass
class Scalars:
    """What the passes of one trace have found.

    Attributes:
        found: Every scalar, in the order of the passes.
        leaks: What reached an operation that is not linear in it, and the number of the pass.
        runs: Number of passes.
        constants: Other numbers that the first pass computes with, and the channels that they meet.
    """

    found: list[Scalar] = field(default_factory=list)
    leaks: list[tuple[Origin, int]] = field(default_factory=list)
    runs: int = 0
    constants: list[tuple[tuple[float, ...], Ids]] = field(default_factory=list)

    def leaked(self, number: int) -> bool:
        """Whether the rows behind scalar ``number`` matter elsewhere too, so that they cannot take up a factor."""
        scalar = self.found[number]
        return scalar.origin is not None and any(
            run == scalar.run and number not in leak.seen and bool(np.isin(leak.ids, scalar.origin.ids).any())
            for leak, run in self.leaks
        )


def scalar_of(func: Any, args: tuple[Any, ...]) -> float | None:
    """The factor that an ATen call multiplies a tensor by, None where it is no such call."""
    if len(args) < 2 or (name := _name(func)) not in ("mul", "div"):
        return None
    number = next((a for a in args[:2] if _is_number(a)), None)
    tensor = next((a for a in args[:2] if isinstance(a, Tensor) and not _is_number(a)), None)
    if number is None or tensor is None or (isinstance(number, Tensor) and not tensor.is_meta):
        return None  # beside tensors with values, a tensor with one may hold anything
    if name == "mul":
        return float(number)
    return 1 / float(number) if number is args[1] and float(number) else None


_NUMBERS = ("Tensor", "number", "float", "Optional[Tensor]", "Optional[number]", "Optional[float]")


def constants_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, ...]:
    """The numbers that an ATen call computes with, but for a factor that ``scalar_of`` sees; () for most calls."""
    name = _name(func)
    if name in ("mul", "div") or name.startswith(("native_", "_native_", "convolution")):
        return ()
    arguments = func._schema.arguments
    given = [*zip(arguments, args, strict=False), *((a, kwargs[a.name]) for a in arguments if a.name in kwargs)]
    known = [value for argument, value in given if str(argument.type) in _NUMBERS and _is_number(value)]
    on_meta = any(tensor.is_meta for tensor in _tensors(args))
    return tuple(float(value) for value in known if on_meta or not isinstance(value, Tensor))


def _is_number(value: Any) -> bool:
    """A number, or a tensor that was made from numbers: the others are on the meta device."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_meta and value.is_floating_point()
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name(func: Any) -> str:
    name: str = func._schema.name.removeprefix("aten::")
    return name if name.startswith("__") else name.rstrip("_")


class Origins:
    """Follows, for one pass, which weights tensors are linear in."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer, self.scalars = tracer, tracer.trace.scalars
        self.scalars.runs += 1
        self._kinds: dict[Any, str] = {}

    def after(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Take note of an operation that has run and been labelled."""
        if self.scalars.runs == 1 and (constants := constants_of(func, args, kwargs)):
            met = [ids for tensor in _tensors((*args, out)) for ids in (self._carried(tensor), self._summed(tensor))]
            self.scalars.constants.append((constants, np.concatenate(met) if met else np.empty(0, np.int64)))
        name = self._kinds.get(func) or self._kinds.setdefault(func, _name(func))
        scalar = scalar_of(func, args) if name in ("mul", "div") else None
        if scalar is not None:
            self._multiplied(scalar, next(a for a in args[:2] if isinstance(a, Tensor) and not _is_number(a)), out)
        elif name in _VIEWS:
            self._moved(name, args[0], out)
        elif name == "bmm" or (name == "mm" and not any(self.tracer.name(operand) for operand in args[:2])):
            self._product(args[0], args[1], out)
        elif name in _LAYERS:
            self._leak(args)
            self._made(args, *_LAYERS[name], out[0] if isinstance(out, (tuple, list)) else out)
        elif name == "add" and self._biased(args[0], args[1], out):
            return
        else:
            self._leak(args)
            self._remember(args, out)

    def _remember(self, args: tuple[Any, ...], out: Any) -> None:
        """Hand on which channels were summed over, so that it is known what a changed scalar concerns."""
        results = [out] if isinstance(out, Tensor) else [item for item in out or () if isinstance(item, Tensor)]
        lost = [ids for tensor in _tensors(args) for ids in (self._carried(tensor), self._summed(tensor)) if ids.size]
        for result in results:
            if lost and not self._carried(result).size:
                self.tracer.facts(result).summed = np.unique(np.concatenate(lost))

    def _origin(self, tensor: Tensor) -> Origin | None:
        return self.tracer.facts(tensor).origin

    def _summed(self, tensor: Tensor) -> Ids:
        found = self.tracer.facts(tensor).summed
        return np.empty(0, np.int64) if found is None else found

    def _multiplied(self, scalar: float, source: Tensor, out: Tensor) -> None:
        number = len(self.scalars.found)
        origin = self._origin(source)
        labels = [part.ids.ravel() for part in self.tracer.parts(source)]
        widths = np.concatenate([*labels, self._summed(source)])
        self.scalars.found.append(Scalar(scalar, origin, widths[widths != FIXED], self.tracer.where, self.scalars.runs))
        if origin is not None:
            self.tracer.facts(out).origin = Origin(origin.ids, origin.tensors, origin.power, origin.seen | {number})
        self.tracer.facts(out).summed = self.tracer.facts(source).summed

    def _moved(self, name: str, source: Tensor, out: Any) -> None:
        origin = self._origin(source)
        if origin is None and self.tracer.facts(source).summed is None:
            return
        for result in [out] if isinstance(out, Tensor) else out:
            self.tracer.facts(result).summed = self.tracer.facts(source).summed
            if origin is None:
                continue
            before, after = (self._carried(tensor) for tensor in (source, result))
            if name not in _TAKING or before.size == after.size or not np.isin(after, origin.ids).any():
                self.tracer.facts(result).origin = origin
            elif before.size == origin.ids.size:  # a part of the channels, each of which is still one row
                self.tracer.facts(result).origin = Origin(after, origin.tensors, origin.power, origin.seen)
            else:
                self.scalars.leaks.append((origin, self.scalars.runs))

    def _carried(self, tensor: Tensor) -> Ids:
        parts = [part.ids.ravel() for part in self.tracer.parts(tensor)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _made(self, args: tuple[Any, ...], weight: int, bias: int | None, out: Tensor) -> None:
        tensors = [args[n] for n in (weight, bias) if n is not None and len(args) > n and args[n] is not None]
        names = [self.tracer.name(tensor) for tensor in tensors]
        if not names or not all(names):
            return
        carried = self._carried(out)
        for ids in self.tracer.trace.labels[names[0] or ""]:  # fresh slots: a range
            if ids is not None and carried.size:
                own = carried[(carried >= ids[0]) & (carried <= ids[-1])]
                if own.size:
                    self.tracer.facts(out).origin = Origin(own, tuple(name for name in names if name))
                    return

    def _biased(self, source: Tensor, bias: Any, out: Tensor) -> bool:
        """Take the addition of a parameter to the output of a layer for a part of the layer."""
        origin = self._origin(source)
        name = self.tracer.name(bias) if isinstance(bias, Tensor) and bias.dim() == 1 else None
        if origin is None or name is None or len(origin.tensors) > 1 or origin.seen:
            return False
        self.tracer.facts(out).origin = Origin(origin.ids, (*origin.tensors, name))
        return True

    def _product(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        self.tracer.facts(out).summed = self._carried(left)
        a, b = self._origin(left), self._origin(right)
        if a is None or b is None:
            if a is not None or b is not None:
                self.tracer.facts(out).origin = a or b
            return
        if a.tensors == b.tensors and np.array_equal(np.sort(a.ids), np.sort(b.ids)):
            self.tracer.facts(out).origin = Origin(a.ids, a.tensors, a.power + b.power, a.seen & b.seen)
        else:
            self.tracer.facts(out).origin = a

    def _leak(self, args: tuple[Any, ...]) -> None:
        for tensor in _tensors(args):
            origin = self._origin(tensor)
            if origin is not None:
                self.scalars.leaks.append((origin, self.scalars.runs))


def _tensors(args: tuple[Any, ...]) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(tuple(value))
