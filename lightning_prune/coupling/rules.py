"""How channels flow through ATen operations: the registry, and the rules that keep the shape.

A rule is called after its operation has run, as ``rule(tracer, func, args, kwargs, out)``. It ties the channels that
must be removed together, freezes those that cannot be removed, and labels ``out``. An operation without a rule freezes
what it is given: it can make a channel unprunable, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_prune.coupling.slots import Ids
from lightning_prune.coupling.trace import Labels, Tracer, concatenate, tensors_in
from lightning_prune.coupling.values import (
    adopt,
    adopt_fresh,
    adopt_whole,
    copied_constant,
    is_constant,
    is_leaky,
    leaky,
    note_constant,
    same_constant,
)

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


def rule_of(func: Any) -> Rule | None:
    """The rule of an ATen overload, None where there is none."""
    name = func._schema.name.removeprefix("aten::")
    for candidate in (name, name.rstrip("_"), name.removesuffix("_copy")):
        if candidate in _RULES:
            rule, first = _RULES[candidate], _FIRST.get(candidate)
            return rule if first is None else partial(_both, first, rule)
    plain = getattr(torch.ops.aten, name.rstrip("_"), None)  # in-place variants are not always tagged
    alike = getattr(plain, func._overloadname, None) if func._schema.name.startswith("aten::") else None
    tagged = any(torch.Tag.pointwise in variant.tags for variant in (func, alike) if variant is not None)
    return pointwise if tagged else None


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


@rule_for(  # not tagged as pointwise, but they are
    "hardswish", "hardsigmoid", "hardtanh", "silu", "gelu", "leaky_relu", "elu", "celu", "selu", "softplus", "mish",
    "log_sigmoid_forward", "relu6", "threshold", "rrelu_with_noise", "_prelu_kernel", "where", "softshrink",
    "hardshrink", "masked_fill", "lerp", "complex", "polar", "angle", "clamp", "real", "imag", "bucketize",
    "mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
)  # fmt: skip
def pointwise(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Tie the channels of the operands one by one, aligned from the right."""
    inputs = list(tensors_in([args, kwargs]))
    known = [tracer.labels(tensor) for tensor in inputs]
    for result in tensors_in(out):
        labels: list[Ids | None] = []
        if result.dim() == 0:  # a loss with a reduction
            for tensor in inputs:
                tracer.freeze(tensor, f"{op_name(func)} over the channels")
        for back in range(result.dim(), 0, -1):
            size = result.shape[-back]
            operands = [
                (tensor, own[-back], _alike(tracer, tensor, own, back))
                for tensor, own in zip(inputs, known, strict=True)
                if tensor.dim() >= back and tensor.shape[-back] == size > 1
            ]
            label = _pointwise_label(tracer, func, args, back, [own for _, own, alike in operands if not alike])
            for tensor, _, alike in operands:
                if alike:
                    adopt(tracer, tensor, tensor.dim() - back, label)
            labels.append(label)
        tracer.set_labels(result, labels)


def _alike(tracer: Tracer, tensor: Tensor, labels: Labels, back: int) -> bool:
    """Whether ``tensor`` is the same for all channels; if its size does not follow them, the pass fails by itself."""
    return labels[-back] is None and (tensor.stride()[-back] == 0 or is_constant(tracer, tensor))


def _pointwise_label(tracer: Tracer, func: Any, args: tuple[Any, ...], back: int, labels: Labels) -> Ids | None:
    label = tie_all(tracer, labels)
    if label is None:
        return None
    zero = [_zero(tracer, argument, back) for argument in args]
    if not _stays_zero(op_name(func), args, zero):
        return leaky(tracer, label)
    exact = (other for other in labels if other is not None and not is_leaky(tracer, other))
    return next(exact, label)


def _zero(tracer: Tracer, argument: Any, back: int) -> bool:
    """Whether an operand is 0 in the masked channels of the dimension ``back`` from the right."""
    if not isinstance(argument, Tensor):
        return isinstance(argument, (int, float)) and argument == 0
    label = tracer.labels(argument)[-back] if argument.dim() >= back else None
    return label is not None and not is_leaky(tracer, label)


_ZERO_AT_ZERO = frozenset((
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "silu", "gelu", "mish", "hardswish",
    "rrelu_with_noise", "_prelu_kernel", "softshrink", "hardshrink", "tanh", "sin", "tan", "sinh", "asin",
    "asinh", "atan", "atanh", "erf", "abs", "neg", "sqrt", "square", "sign", "sgn", "ceil", "floor", "round",
    "trunc", "frac", "log1p", "expm1", "nan_to_num", "deg2rad", "rad2deg", "conj", "_conj", "div", "real",
    "imag", "angle", "positive", "copy", "conj_physical", "remainder", "fmod",
))  # fmt: skip


def _stays_zero(name: str, args: tuple[Any, ...], zero: list[bool]) -> bool:
    """Whether a masked channel is 0 behind an operation; ``zero`` says where it is 0 in its arguments."""
    if name in ("mul", "multiply", "logical_and"):
        return any(zero[:2])
    if name in ("add", "sub", "maximum", "minimum", "fmax", "fmin", "lerp", "hypot", "complex", "rsub", "mse_loss"):
        return all(zero[:2])
    if name in ("addcmul", "addcdiv"):
        return zero[0] and (zero[1] or (name == "addcmul" and zero[2]))
    if name == "where":
        return all(zero[1:3])
    if name in ("gt", "lt", "ne"):
        return all(zero[:2])
    if name == "masked_fill":
        return zero[0] and zero[2]
    if name in ("clamp", "clamp_min", "clamp_max", "hardtanh"):
        low, high = {"clamp_min": (args[1:2], ()), "clamp_max": ((), args[1:2])}.get(name, (args[1:2], args[2:3]))
        limits = [*low, *high]
        if any(isinstance(limit, Tensor) for limit in limits):
            return False
        return zero[0] and all(x is None or x <= 0 for x in low) and all(x is None or x >= 0 for x in high)
    if name == "threshold":
        return zero[0] and zero[2]
    if name == "pow":
        return zero[0] and isinstance(args[1], (int, float)) and args[1] > 0
    return zero[0] and name in _ZERO_AT_ZERO


def tie_all(tracer: Tracer, labels: Sequence[Ids | None]) -> Ids | None:
    """Tie all ``labels``; where one is no channel, the others have to stay."""
    known = next((label for label in labels if label is not None), None)
    if known is None:
        return None
    for label in labels:
        if label is not known:
            tracer.tie(known, label)
    return None if any(label is None for label in labels) else known


@rule_for("as_strided")
def _as_strided(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, size = args[0], tuple(args[1])
    labels = tracer.labels(source)
    if len(labels) == len(size) and (source is out or source.shape == out.shape):  # new strides only
        tracer.set_labels(out, labels)
    else:
        tracer.freeze(source, "seen through other strides")


@rule_for("copy")
def _copy(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    target, source = args[:2]
    before = tracer.labels(target)
    pointwise(tracer, func, (target, source), {}, out)
    for dim, label in enumerate(tracer.labels(target)):
        if label is not None and before[dim] is None:
            adopt_whole(tracer, target, dim)
    tracer.set_labels(target, before)


@rule_for(
    "alias", "clone", "detach", "_to_copy", "contiguous", "lift_fresh", "dropout", "native_dropout", "_conj",
    "zeros_like", "zero", "_fused_dropout", "lift_fresh_copy", "_neg_view", "resolve_conj",
)  # fmt: skip
def _same_shape(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    for result in tensors_in(out):
        tracer.set_parts(result, tracer.parts(source))
        if func._schema.name in ("aten::alias", "aten::clone", "aten::detach", "aten::_to_copy"):
            tracer.same_parameter(source, result)
        if func._schema.name in ("aten::alias", "aten::detach"):
            same_constant(tracer, source, result)
        elif func._schema.name in ("aten::clone", "aten::_to_copy"):
            copied_constant(tracer, source, result)
        elif func._schema.name == "aten::zeros_like":
            note_constant(tracer, result, zero=True, like=source)


@rule_for(
    "empty_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like", "bernoulli", "uniform",
    "normal", "random", "fill", "exponential", "log_normal", "cauchy", "geometric",
)  # fmt: skip
def _filled(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    whole = source.numel() * source.element_size() == source.untyped_storage().nbytes()
    if whole and is_constant(tracer, source, writes=1):
        note_constant(tracer, source, zero=False)
    elif out is not source and func._schema.name.endswith("_like"):
        note_constant(tracer, out, zero=False, like=source)
    labels = tracer.labels(source)
    tracer.set_labels(out, [None if label is None else leaky(tracer, label) for label in labels])


@rule_for("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided")
def _new(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, zero = args[0], op_name(func) == "new_zeros"
    note_constant(tracer, out, zero)
    if source.dim() == out.dim():  # a guess that code sizes it after `source`; the verification decides
        for dim, label in enumerate(tracer.labels(source)):
            adopt(tracer, out, dim, label)


@rule_for("zeros", "ones", "full", "empty", "rand", "randn", "empty_strided")
def _constant(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    note_constant(tracer, out, op_name(func) == "zeros" or (op_name(func) == "full" and args[1] == 0))


@rule_for("arange", "scalar_tensor", "linspace", "logspace", "eye", "randperm", "randint", "tril_indices")
def _numbers(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    return None


@rule_for("cat", "concat")
def _cat(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    tensors = [t for t in args[0] if t.dim() == out.dim()]  # torch.cat skips legacy empty tensors
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    labels: list[Ids | None] = []
    for tensor in tensors:
        adopt_fresh(tracer, tensor, axis)
    for dim in range(out.dim()):
        parts = [tracer.labels(t)[dim] for t in tensors]
        sizes = [t.shape[dim] for t in tensors]
        labels.append(concatenate(parts, sizes) if dim == axis else _side_by_side(tracer, tensors, dim))
    tracer.set_labels(out, labels)


@rule_for("stack")
def _stack(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    labels = [_side_by_side(tracer, args[0], dim) for dim in range(out.dim() - 1)]
    labels.insert(axis, None)
    tracer.set_labels(out, labels)


def _side_by_side(tracer: Tracer, tensors: Sequence[Tensor], dim: int) -> Ids | None:
    """The channels along a dimension that ``tensors``, which lie along another one, have in common."""
    parts = [t for t in tensors if not _alike(tracer, t, tracer.labels(t), t.dim() - dim)]
    labels = [tracer.labels(t)[dim] for t in parts]
    label = tie_all(tracer, labels)
    if label is None:
        return None
    if len(parts) < len(tensors):
        return leaky(tracer, label)
    return next((own for own in labels if own is not None and is_leaky(tracer, own)), label)
