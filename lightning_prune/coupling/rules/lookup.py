"""The rule of an ATen operation, and how the operation appears in the log of a pass.

A module with rules is imported here, which registers its rules.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from lightning_prune.coupling.rules import (  # noqa: F401
    copying,
    indexing,
    joining,
    layers,
    products,
    recurrent,
    reductions,
    reshaping,
    slicing,
    vision,
)
from lightning_prune.coupling.rules.pointwise import pointwise
from lightning_prune.coupling.rules.registry import Rule, is_pointwise, registered_rule

_MATRIX_PRODUCTS = frozenset(("mm", "addmm", "linear"))
_NOT_LOGGED = frozenset(
    ("bmm", "baddbmm", "mul", "sum", "t", "transpose", "permute", "expand", "clone", "copy_", "_to_copy", "contiguous",
     "detach", "alias", "empty", "as_strided", "lift_fresh", "_conj")
)  # fmt: skip


@cache
def rule_of(func: Any) -> Rule | None:
    """The rule of an ATen overload, None where there is none."""
    found = registered_rule(func._schema.name.removeprefix("aten::"))
    return pointwise if found is None and is_pointwise(func) else found


@cache
def step_of(func: Any) -> Any:
    """The entry of an ATen overload in the log of a pass: the overload, or "product" for all matrix products.

    None for operations that the same code runs or skips depending on strides and sizes of 1, as ``einsum`` does.
    """
    name = func._schema.name.removeprefix("aten::")
    if is_reshape(func) or is_cut(func) or name in _NOT_LOGGED:
        return None
    return "product" if name in _MATRIX_PRODUCTS else func


@cache
def is_reshape(func: Any) -> bool:
    """Whether ``Trace.shapes`` has an entry for the result of this ATen overload."""
    return rule_of(func) is reshaping.reshape


@cache
def is_cut(func: Any) -> bool:
    """Whether ``Trace.shapes`` has an entry for each part that this ATen overload cuts out."""
    return rule_of(func) in (slicing.take, slicing.select, slicing.split)
