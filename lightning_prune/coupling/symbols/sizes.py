"""Numbers in the code: where the integers that a forward pass computes with come from.

A ``Number`` is an ``int`` that remembers whether it was read from a tensor's shape or from an attribute of a module,
and what was computed from it. Arithmetic keeps the memory, ``int()`` and floating point lose it. Comparing two numbers
that are equal notes that they have to stay equal.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from lightning_prune.coupling.symbols.channel_ids import Ids
from lightning_prune.network.tensors import named_modules


@dataclass(frozen=True)
class Attribute:
    """An integer attribute of a module, or one entry of a tuple or list of them."""

    module: str
    name: str
    index: int | None = None


@dataclass(frozen=True, eq=False)
class SizeOf:
    """The size of a dimension that carries channels."""

    ids: Ids


@dataclass(frozen=True, eq=False)
class Operation:
    """Integer arithmetic on two expressions."""

    function: Callable[[int, int], int]
    left: Expression
    right: Expression


@dataclass(frozen=True)
class LinearDim:
    """A dimension as a linear function of how many units each group keeps: size − Σ per_unit · removed."""

    size: int
    per_unit: Mapping[str, float]

    def after(self, removed: Mapping[str, int]) -> float:
        """The size once so many units of each group are removed."""
        return self.size - sum(per_unit * removed.get(name, 0) for name, per_unit in self.per_unit.items())


Expression = int | Attribute | SizeOf | LinearDim | Operation  # LinearDim is what SizeOf is once groups are known

_INVERSES: dict[Any, tuple[Callable[[int, int], int], Callable[[int, int], int]]] = {
    # function -> (left from result and right, right from result and left)
    operator.mul: (operator.floordiv, operator.floordiv),
    operator.floordiv: (operator.mul, lambda result, left: left // result),
    operator.add: (operator.sub, operator.sub),
    operator.sub: (operator.add, lambda result, left: left - result),
}


class Number(int):
    """An integer with the expression it was computed by; ``book`` notes what has to stay equal."""

    expression: Expression
    book: SizeEquations

    def __new__(cls, value: int, expression: Expression, book: SizeEquations) -> Number:
        """``value``, computed by ``expression``."""
        number = super().__new__(cls, value)
        number.expression, number.book = expression, book
        return number

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)  # type: ignore[operator]
        if equal is True and isinstance(other, Number):
            self.book.equate(self, other)
        return equal is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__

    def __deepcopy__(self, memo: dict[int, Any]) -> Number:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


def _arithmetic(function: Callable[[int, int], int], name: str) -> None:
    plain, swapped = getattr(int, f"__{name}__"), getattr(int, f"__r{name}__")

    def forward(self: Number, other: Any) -> Any:
        value = plain(self, other)
        if value is NotImplemented or isinstance(other, bool):
            return value
        return Number(value, Operation(function, self.expression, self.book.expression(other)), self.book)

    def reflected(self: Number, other: Any) -> Any:
        value = swapped(self, other)
        if value is NotImplemented or isinstance(other, bool):
            return value
        return Number(value, Operation(function, self.book.expression(other), self.expression), self.book)

    setattr(Number, f"__{name}__", forward)
    setattr(Number, f"__r{name}__", reflected)


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    _arithmetic(getattr(operator, _name), _name)


@dataclass(frozen=True)
class Equation:
    """Two expressions that have to give the same value at every width.

    Attributes:
        left: One side.
        right: The other side.
        where: Qualified name of the module whose forward says so.
    """

    left: Expression
    right: Expression
    where: str


class SizeEquations:
    """What the numbers of one trace have been found to have to do with each other."""

    def __init__(self) -> None:
        self.equations: list[Equation] = []
        self.values: dict[Attribute, int] = {}
        self.where = ""

    def expression(self, value: Any) -> Expression:
        """Where ``value`` comes from; a number of another trace is only a number."""
        return value.expression if isinstance(value, Number) and value.book is self else int(value)

    def is_kept(self, value: Any) -> bool:
        """Whether ``value`` was computed from attributes of modules alone."""
        return isinstance(value, Number) and value.book is self and not sizes_in(value.expression)

    def equate(self, a: int, b: Any) -> None:
        """Note that two numbers have to stay equal, unless both are constants."""
        if not isinstance(b, int) or isinstance(b, bool):
            return
        left, right = self.expression(a), self.expression(b)
        if not (isinstance(left, int) and isinstance(right, int)) and left is not right:
            self.equations.append(Equation(left, right, self.where))

    def tagged(self, value: int, name: str) -> Number:
        """``value``, which the module whose forward is running keeps as ``name``."""
        return self._attribute(value, Attribute(self.where, name))

    def tag_attributes(self, module: nn.Module) -> None:
        """Replace the integers that the user's modules inside ``module`` keep by numbers that know where they are."""
        for path, owner in named_modules(module):
            if not _keeps_numbers(owner):
                continue
            for name, value in list(vars(owner).items()):
                tagged = self._tagged(value, path, name)
                if tagged is not None:
                    owner.__dict__[name] = tagged

    def _tagged(self, value: Any, path: str, name: str) -> Any:
        if name == "training" or name.startswith("_"):
            return None
        if type(value) is int:
            return self._attribute(value, Attribute(path, name))
        if type(value) in (tuple, list) and value and all(type(item) is int for item in value):
            return type(value)(self._attribute(item, Attribute(path, name, i)) for i, item in enumerate(value))
        return None

    def _attribute(self, value: int, attribute: Attribute) -> Number:
        self.values[attribute] = value
        return Number(value, attribute, self)


def _keeps_numbers(module: nn.Module) -> bool:
    """Whether the attributes of ``module`` are the user's: those of PyTorch's own layers follow by a table."""
    if isinstance(module, (nn.MultiheadAttention, nn.modules.conv._ConvNd, torch.jit.ScriptModule)):
        return False
    if isinstance(module, (_InstanceNorm, nn.LayerNorm, nn.RMSNorm)):
        return module.weight is None  # with parameters, it follows their shape
    if isinstance(module, (nn.Unflatten, nn.Transformer)):
        return True
    return not type(module).__module__.startswith(("torch.nn.modules", "torch.ao."))


def _leaves(expression: Expression) -> Iterator[Expression]:
    if isinstance(expression, Operation):
        yield from _leaves(expression.left)
        yield from _leaves(expression.right)
    else:
        yield expression


def attributes_in(expression: Expression) -> list[Attribute]:
    """Every attribute that ``expression`` reads."""
    return [leaf for leaf in _leaves(expression) if isinstance(leaf, Attribute)]


def sizes_in(expression: Expression) -> list[SizeOf]:
    """Every size that ``expression`` reads."""
    return [leaf for leaf in _leaves(expression) if isinstance(leaf, SizeOf)]


def groups_in(expression: Expression) -> list[str]:
    """Every group whose removal changes a size in ``expression``."""
    return [name for leaf in _leaves(expression) if isinstance(leaf, LinearDim) for name in leaf.per_unit]


def rewritten(expression: Expression, leaf: Callable[[Expression], Expression]) -> Expression:
    """``expression`` with every size and attribute replaced."""
    if isinstance(expression, Operation):
        return Operation(expression.function, rewritten(expression.left, leaf), rewritten(expression.right, leaf))
    return leaf(expression)


def evaluate(expression: Expression, removed: Mapping[str, int]) -> int:
    """The value once so many units of each group are removed.

    Raises:
        ZeroDivisionError: If the expression divides by a size that is then zero.
    """
    if isinstance(expression, Operation):
        return expression.function(evaluate(expression.left, removed), evaluate(expression.right, removed))
    if isinstance(expression, LinearDim):
        return round(expression.after(removed))
    assert isinstance(expression, int), "sizes and attributes are resolved before"
    return expression


def solved_for(attribute: Attribute, expression: Expression, result: Expression) -> Expression | None:
    """What ``attribute`` is if ``expression`` has to give ``result``; None where that cannot be said."""
    if expression == attribute:
        return result
    if not isinstance(expression, Operation) or expression.function not in _INVERSES:
        return None
    inverse_left, inverse_right = _INVERSES[expression.function]
    in_left = attribute in attributes_in(expression.left)
    if in_left == (attribute in attributes_in(expression.right)):
        return None
    if in_left:
        return solved_for(attribute, expression.left, Operation(inverse_left, result, expression.right))
    return solved_for(attribute, expression.right, Operation(inverse_right, result, expression.left))
