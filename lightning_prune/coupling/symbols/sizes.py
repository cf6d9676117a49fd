"""Sizes as expressions: integer arithmetic on the widths of groups and on attributes of modules."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_prune.coupling.symbols.channel_ids import Ids


@dataclass(frozen=True)
class Attribute:
    """An integer attribute of a module, or one entry of a tuple or list of integers.

    Attributes:
        module: Qualified name of the module.
        name: Name of the attribute.
        index: Position of the entry, None for a plain integer.
    """

    module: str
    name: str
    index: int | None = None


@dataclass(frozen=True, eq=False)
class SizeOf:
    """The size of a dimension that carries the channels ``ids``."""

    ids: Ids


@dataclass(frozen=True, eq=False)
class Operation:
    """Integer arithmetic on two expressions."""

    function: Callable[[int, int], int]
    left: Expression
    right: Expression


@dataclass(frozen=True)
class LinearDim:
    """The size of a dimension as a linear function of the units removed: size − Σ per_unit · removed.

    Attributes:
        size: The size in the analyzed network.
        per_unit: Group name -> by how much the size shrinks for each removed unit.
    """

    size: int
    per_unit: Mapping[str, float]

    def after(self, removed: Mapping[str, int]) -> float:
        """The size after the removal of ``removed`` (group name -> number of units)."""
        return self.size - sum(per_unit * removed.get(name, 0) for name, per_unit in self.per_unit.items())


# Once groups are known, every SizeOf is replaced by a LinearDim
Expression = int | Attribute | SizeOf | LinearDim | Operation

_INVERSES: dict[Any, tuple[Callable[[int, int], int], Callable[[int, int], int]]] = {
    # function -> (left from result and right, right from result and left)
    operator.mul: (operator.floordiv, operator.floordiv),
    operator.floordiv: (operator.mul, lambda result, left: left // result),
    operator.add: (operator.sub, operator.sub),
    operator.sub: (operator.add, lambda result, left: left - result),
}


@dataclass(frozen=True)
class Equation:
    """Two expressions that must have the same value at every width.

    Attributes:
        left: One side.
        right: The other side.
        where: Qualified name of the module whose forward requires it.
    """

    left: Expression
    right: Expression
    where: str


def _leaves(expression: Expression) -> Iterator[Expression]:
    if isinstance(expression, Operation):
        yield from _leaves(expression.left)
        yield from _leaves(expression.right)
    else:
        yield expression


def attributes_in(expression: Expression) -> list[Attribute]:
    """Every attribute in ``expression``."""
    return [leaf for leaf in _leaves(expression) if isinstance(leaf, Attribute)]


def sizes_in(expression: Expression) -> list[SizeOf]:
    """Every size of a labelled dimension in ``expression``."""
    return [leaf for leaf in _leaves(expression) if isinstance(leaf, SizeOf)]


def groups_in(expression: Expression) -> list[str]:
    """Names of the groups whose removal changes a size in ``expression``."""
    return [name for leaf in _leaves(expression) if isinstance(leaf, LinearDim) for name in leaf.per_unit]


def rewritten(expression: Expression, leaf: Callable[[Expression], Expression]) -> Expression:
    """``expression`` with every size and attribute replaced by the result of ``leaf``."""
    if isinstance(expression, Operation):
        return Operation(expression.function, rewritten(expression.left, leaf), rewritten(expression.right, leaf))
    return leaf(expression)


def evaluate(expression: Expression, removed: Mapping[str, int]) -> int:
    """The value after the removal of ``removed`` (group name -> number of units).

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
    """The value of ``attribute`` for which ``expression`` equals ``result``; None where it has no inverse."""
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
