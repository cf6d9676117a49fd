"""How channels flow through ATen operations."""

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
from lightning_prune.coupling.rules.registry import Rule, is_pointwise, registered

_PRODUCTS = frozenset(("mm", "addmm", "linear"))
_BESIDES = frozenset(
    ("bmm", "baddbmm", "mul", "sum", "t", "transpose", "permute", "expand", "clone", "copy_", "_to_copy", "contiguous",
     "detach", "alias", "empty", "as_strided", "lift_fresh", "_conj")
)  # fmt: skip


@cache
def rule_of(func: Any) -> Rule | None:
    """The rule of an ATen overload, None where there is none."""
    found = registered(func._schema.name.removeprefix("aten::"))
    return pointwise if found is None and is_pointwise(func) else found


@cache
def step_of(func: Any) -> Any:
    """What an ATen overload is on the way of a pass: itself, or one of all products with a matrix.

    None for those that the same code runs or leaves out as strides and sizes of 1 suggest, as ``einsum`` does.
    """
    name = func._schema.name.removeprefix("aten::")
    if is_reshape(func) or is_cut(func) or name in _BESIDES:
        return None
    return "product" if name in _PRODUCTS else func


@cache
def is_reshape(func: Any) -> bool:
    """Whether ``Trace.sizes`` has an entry for the result of this ATen overload."""
    return rule_of(func) is reshaping.reshape


@cache
def is_cut(func: Any) -> bool:
    """Whether ``Trace.sizes`` has an entry for each part that this ATen overload cuts out."""
    return rule_of(func) in (slicing.take, slicing.select, slicing.split)
