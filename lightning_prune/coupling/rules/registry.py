"""The registry of rules: how channels flow through an ATen operation.

A rule is called after its operation has run, as ``rule(tracer, func, args, kwargs, out)``. It ties the channels that
must be removed together, freezes those that cannot be removed, and labels ``out``. An operation without a rule freezes
what it is given: it can make a channel unprunable, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lightning_prune.coupling.tracing.tracer import Tracer

Rule = Callable[[Tracer, Any, tuple[Any, ...], dict[str, Any], Any], None]
_RULES: dict[str, Rule] = {}
_FIRST: dict[str, Rule] = {}


def rule_for(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the ATen operations ``names`` (in-place variants and copies of views included)."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def before_rule_of(*names: str) -> Callable[[Rule], Rule]:
    """Register what is called before the rule of the operations ``names``."""

    def register(rule: Rule) -> Rule:
        _FIRST.update(dict.fromkeys(names, rule))
        return rule

    return register


def registered(name: str) -> Rule | None:
    """The rule of an ATen operation, by its name without the namespace; None where there is none."""
    for candidate in (name, name.rstrip("_"), name.removesuffix("_copy")):
        if candidate in _RULES:
            rule, first = _RULES[candidate], _FIRST.get(candidate)
            return rule if first is None else partial(_both, first, rule)
    return None


def is_pointwise(func: Any) -> bool:
    """Whether PyTorch tags an ATen overload as pointwise, or the one that it is the in-place variant of."""
    plain = getattr(torch.ops.aten, op_name(func), None)  # in-place variants are not always tagged
    alike = getattr(plain, func._overloadname, None) if func._schema.name.startswith("aten::") else None
    return any(torch.Tag.pointwise in variant.tags for variant in (func, alike) if variant is not None)


def _both(first: Rule, second: Rule, *call: Any) -> None:
    first(*call)
    second(*call)


def op_name(func: Any) -> str:
    """``add`` for ``aten::add_.Tensor``."""
    name: str = func._schema.name.removeprefix("aten::").rstrip("_")
    return name


def bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the schema; what was not given has its default."""
    arguments = func._schema.arguments
    given = {argument.name: argument.default_value for argument in arguments}
    given.update(zip((argument.name for argument in arguments), args, strict=False))
    given.update(kwargs)
    return given
