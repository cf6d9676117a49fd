"""Integers of a forward pass with their origin: read from a tensor's shape or from an attribute of a module.

Arithmetic on a ``TracedInt`` gives a ``TracedInt``; ``int()`` and floating-point arithmetic lose the origin. Comparing
two equal traced integers records that they must stay equal.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from lightning_prune.coupling.symbols.sizes import Attribute, Equation, Expression, Operation, sizes_in
from lightning_prune.network.tensors import named_modules


class TracedInt(int):
    """An integer with the expression that it was computed by.

    Attributes:
        expression: The expression.
        size_equations: Where comparisons with other traced integers are recorded.
    """

    expression: Expression
    size_equations: SizeEquations

    def __new__(cls, value: int, expression: Expression, size_equations: SizeEquations) -> TracedInt:
        """``value``, computed by ``expression``."""
        number = super().__new__(cls, value)
        number.expression, number.size_equations = expression, size_equations
        return number

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)  # type: ignore[operator]
        if equal is True and isinstance(other, TracedInt):
            self.size_equations.equate(self, other)
        return equal is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedInt:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


def _define_arithmetic(function: Callable[[int, int], int], name: str) -> None:
    plain, swapped = getattr(int, f"__{name}__"), getattr(int, f"__r{name}__")

    def forward(self: TracedInt, other: Any) -> Any:
        value = plain(self, other)
        if value is NotImplemented or isinstance(other, bool):
            return value
        operation = Operation(function, self.expression, self.size_equations.expression(other))
        return TracedInt(value, operation, self.size_equations)

    def reflected(self: TracedInt, other: Any) -> Any:
        value = swapped(self, other)
        if value is NotImplemented or isinstance(other, bool):
            return value
        operation = Operation(function, self.size_equations.expression(other), self.expression)
        return TracedInt(value, operation, self.size_equations)

    setattr(TracedInt, f"__{name}__", forward)
    setattr(TracedInt, f"__r{name}__", reflected)


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    _define_arithmetic(getattr(operator, _name), _name)


class SizeEquations:
    """Equations between the integers of one trace.

    Attributes:
        equations: Expressions that must stay equal.
        values: The value of every attribute that was replaced by a traced integer.
        where: Qualified name of the module whose forward is running.
    """

    def __init__(self) -> None:
        self.equations: list[Equation] = []
        self.values: dict[Attribute, int] = {}
        self.where = ""

    def expression(self, value: Any) -> Expression:
        """The expression of ``value``; a traced integer of another trace is a constant."""
        return value.expression if isinstance(value, TracedInt) and value.size_equations is self else int(value)

    def is_attribute(self, value: Any) -> bool:
        """Whether ``value`` was computed from attributes of modules alone."""
        traced = isinstance(value, TracedInt) and value.size_equations is self
        return traced and not sizes_in(value.expression)

    def equate(self, a: int, b: Any) -> None:
        """Require that two integers stay equal, unless both are constants."""
        if not isinstance(b, int) or isinstance(b, bool):
            return
        left, right = self.expression(a), self.expression(b)
        if not (isinstance(left, int) and isinstance(right, int)) and left is not right:
            self.equations.append(Equation(left, right, self.where))

    def tagged(self, value: int, name: str) -> TracedInt:
        """``value`` as the attribute ``name`` of the module whose forward is running."""
        return self._attribute(value, Attribute(self.where, name))

    def tag_attributes(self, module: nn.Module) -> None:
        """Replace the integer attributes of the user's modules inside ``module`` by traced integers."""
        for path, owner in named_modules(module):
            if not _has_own_attributes(owner):
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

    def _attribute(self, value: int, attribute: Attribute) -> TracedInt:
        self.values[attribute] = value
        return TracedInt(value, attribute, self)


def _has_own_attributes(module: nn.Module) -> bool:
    """Whether the attributes of ``module`` are the user's: those of PyTorch's layers follow ``layer_attributes``."""
    if isinstance(module, (nn.MultiheadAttention, nn.modules.conv._ConvNd, torch.jit.ScriptModule)):
        return False
    if isinstance(module, (_InstanceNorm, nn.LayerNorm, nn.RMSNorm)):
        return module.weight is None  # with parameters, the attribute follows their shape
    if isinstance(module, (nn.Unflatten, nn.Transformer)):
        return True
    return not type(module).__module__.startswith(("torch.nn.modules", "torch.ao."))
