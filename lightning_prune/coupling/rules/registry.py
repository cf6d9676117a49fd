"""The registry of rules, and how to write one.

A rule is called after its operation has run, as ``rule(tracer, func, args, kwargs, out)``. It ties the channels that
must be removed together, freezes those that cannot be removed, and labels ``out``. An operation without a rule freezes
the channels of its operands, so a missing rule can make a channel unprunable, but never gives a wrong result.

To add a rule, write one function with the decorator ``rule_for`` in a module of this package. For a hypothetical
``my_ops::scale_rows(Tensor x, Tensor scale) -> Tensor``, which multiplies the rows of ``x`` by a vector and sorts each
row::

    @rule_for("my_ops::scale_rows")  # operations of ATen are named without "aten::"
    def _scale_rows(tracer, func, args, kwargs, out):
        x, scale = args
        rows, columns = tracer.labels(x)                        # channel ids, or None where a dimension has no channels
        tracer.tie(rows, tracer.labels(scale)[0])               # a row is removed together with its entry of ``scale``
        tracer.freeze(x, tracer.forward_reason("sorts its columns"), dims=[1])  # no column can be removed
        tracer.set_labels(out, [rows, None])

A new module must also be imported in ``lookup``. Extend ``tests/coupling/rules/test_rules_ops.py``, which compares the
removal of channels with zeroing them for every rule. Helpers: ``tie_all`` (pointwise); ``mark_inputs``,
``mark_outputs`` and ``add_macs`` for operations with weights (activation_sites); ``nonzero_masked`` for operations that
map 0 to other values (constant_values).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_prune.coupling.symbols.aten import op_name
from lightning_prune.coupling.tracing.tracer import Tracer

Rule = Callable[[Tracer, Any, tuple[Any, ...], dict[str, Any], Any], None]
_RULES: dict[str, Rule] = {}
_BEFORE: dict[str, Rule] = {}


def rule_for(*names: str) -> Callable[[Rule], Rule]:
    """Decorator that registers a rule for the ATen operations ``names``, their in-place and their copying variants."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def before_rule_for(*names: str) -> Callable[[Rule], Rule]:
    """Decorator that registers a function which is called before the rule of each of the operations ``names``."""

    def register(rule: Rule) -> Rule:
        _BEFORE.update(dict.fromkeys(names, rule))
        return rule

    return register


def registered_rule(name: str) -> Rule | None:
    """The rule of an ATen operation, by its name without the namespace; None where there is none."""
    for candidate in (name, name.rstrip("_"), name.removesuffix("_copy")):
        if candidate in _RULES:
            rule, before = _RULES[candidate], _BEFORE.get(candidate)
            return rule if before is None else partial(_both, before, rule)
    return None


def is_pointwise(func: Any) -> bool:
    """Whether PyTorch tags an ATen overload as pointwise, or the overload whose in-place variant it is."""
    plain = getattr(torch.ops.aten, op_name(func), None)  # in-place variants are not always tagged
    same_overload = getattr(plain, func._overloadname, None) if func._schema.name.startswith("aten::") else None
    return any(torch.Tag.pointwise in variant.tags for variant in (func, same_overload) if variant is not None)


def freeze_all(tracer: Tracer, tensors: Iterable[Tensor], what: str) -> None:
    """Freeze all channels of ``tensors``, because forward ``what``."""
    for tensor in tensors:
        tracer.freeze(tensor, tracer.forward_reason(what))


def _both(first: Rule, second: Rule, *call: Any) -> None:
    first(*call)
    second(*call)
