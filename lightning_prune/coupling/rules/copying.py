"""Rules for copies, and for tensors filled with a constant or with random values."""

from __future__ import annotations

from typing import Any

from lightning_prune.coupling.rules.pointwise import pointwise
from lightning_prune.coupling.rules.registry import rule_for
from lightning_prune.coupling.symbols.aten import op_name
from lightning_prune.coupling.tracing.constant_values import (
    alias_constant,
    all_nonzero_masked,
    copy_constant,
    is_constant,
    label_constant,
    label_written_constant,
    record_constant,
)
from lightning_prune.coupling.tracing.tracer import Tracer
from lightning_prune.network.tensors import tensors_in


@rule_for("as_strided")
def _as_strided(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, size = args[0], tuple(args[1])
    labels = tracer.labels(source)
    if len(labels) == len(size) and (source is out or source.shape == out.shape):  # new strides only
        tracer.set_labels(out, labels)
    else:
        tracer.freeze(source, tracer.forward_reason("views it with other strides"))


@rule_for("copy")
def _copy(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    target, source = args[:2]
    before = tracer.labels(target)
    pointwise(tracer, func, (target, source), {}, out)
    for dim, label in enumerate(tracer.labels(target)):
        if label is not None and before[dim] is None:
            label_written_constant(tracer, target, dim)
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
            alias_constant(tracer, source, result)
        elif func._schema.name in ("aten::clone", "aten::_to_copy"):
            copy_constant(tracer, source, result)
        elif func._schema.name == "aten::zeros_like":
            record_constant(tracer, result, zero=True, like=source)


@rule_for(
    "empty_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like", "bernoulli", "uniform",
    "normal", "random", "fill", "exponential", "log_normal", "cauchy", "geometric",
)  # fmt: skip
def _filled(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    whole = source.numel() * source.element_size() == source.untyped_storage().nbytes()
    if whole and is_constant(tracer, source, writes=1):
        record_constant(tracer, source, zero=False)
    elif out is not source and func._schema.name.endswith("_like"):
        record_constant(tracer, out, zero=False, like=source)
    tracer.set_labels(out, all_nonzero_masked(tracer, tracer.labels(source)))


@rule_for("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided")
def _new(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, zero = args[0], op_name(func) == "new_zeros"
    record_constant(tracer, out, zero)
    if source.dim() == out.dim():  # assumes that its size follows `source`; the dry run of the plan checks it
        for dim, label in enumerate(tracer.labels(source)):
            label_constant(tracer, out, dim, label)


@rule_for("zeros", "ones", "full", "empty", "rand", "randn", "empty_strided")
def _constant(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    if not out.numel():
        return
    record_constant(tracer, out, op_name(func) == "zeros" or (op_name(func) == "full" and args[1] == 0))


@rule_for("arange", "scalar_tensor", "linspace", "logspace", "eye", "randperm", "randint", "tril_indices")
def _numbers(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    return None
