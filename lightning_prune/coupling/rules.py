"""How channels flow through ATen operations: the registry, and the rules that keep the shape.

A rule is called after its operation has run, as ``rule(tracer, func, args, kwargs, out)``. It ties the channels that
must be removed together, freezes those that cannot be removed, and labels ``out``. An operation without a rule freezes
what it is given: it can make a channel unprunable, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightning_prune.coupling.slots import Ids
from lightning_prune.coupling.trace import Tracer, concatenate, tensors_in

Rule = Callable[[Tracer, Any, tuple[Any, ...], dict[str, Any], Any], None]
_RULES: dict[str, Rule] = {}


def rule_for(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the ATen operations ``names`` (in-place variants included)."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def rule_of(func: Any) -> Rule | None:
    """The rule of an ATen overload, None where there is none."""
    name = func._schema.name.removeprefix("aten::")
    for candidate in (name, name.rstrip("_")):
        if candidate in _RULES:
            return _RULES[candidate]
    return _pointwise if torch.Tag.pointwise in func.tags else None


@rule_for(  # not tagged as pointwise, but they are
    "hardswish", "hardsigmoid", "hardtanh", "silu", "gelu", "leaky_relu", "elu", "celu", "selu", "softplus", "mish",
    "log_sigmoid_forward", "relu6", "threshold", "rrelu_with_noise", "_prelu_kernel", "where", "softshrink",
)  # fmt: skip
def _pointwise(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    inputs = list(tensors_in([args, kwargs]))
    for result in tensors_in(out):
        labels: list[Ids | None] = []
        for back in range(result.dim(), 0, -1):
            size = result.shape[-back]
            full = [t for t in inputs if t.dim() >= back and t.shape[-back] == size]
            labels.append(_tie_all(tracer, [tracer.labels(t)[-back] for t in full]) if size > 1 else None)
        tracer.set_labels(result, labels)


def _tie_all(tracer: Tracer, labels: Sequence[Ids | None]) -> Ids | None:
    known = next((label for label in labels if label is not None), None)
    if known is None:
        return None
    for label in labels:
        if label is not known:
            tracer.tie(known, label)
    return known


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
    _pointwise(tracer, func, (target, source), {}, out)
    tracer.set_labels(target, before)


@rule_for(
    "alias", "clone", "detach", "_to_copy", "contiguous", "lift_fresh", "dropout", "native_dropout", "_conj",
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like",
    "bernoulli", "uniform", "normal", "random", "fill", "zero",
)  # fmt: skip
def _same_shape(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    for result in tensors_in(out):
        tracer.set_parts(result, tracer.parts(source))
        if func._schema.name in ("aten::alias", "aten::clone", "aten::detach", "aten::_to_copy"):
            tracer.same_parameter(source, result)


@rule_for("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided")
def _new(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    if source.dim() == out.dim():  # a guess that code sizes it after `source`; the verification decides
        labels = [
            label if a == b else None
            for label, a, b in zip(tracer.labels(source), source.shape, out.shape, strict=True)
        ]
        tracer.set_labels(out, labels)


@rule_for(
    "empty",
    "zeros",
    "ones",
    "full",
    "arange",
    "rand",
    "randn",
    "scalar_tensor",
    "linspace",
    "eye",
    "randperm",
)
def _constant(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    return None


@rule_for(
    "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", "avg_pool1d", "adaptive_avg_pool1d",
    "max_pool2d", "mkldnn_max_pool2d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact2d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d",
    "upsample_linear1d", "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d", "replication_pad1d",
    "replication_pad2d",
)  # fmt: skip
def _spatial(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    spatial = next((int(d) for d in func._schema.name if d.isdigit()), 2)
    first = source.dim() - spatial
    tracer.freeze(source, "pooled, padded or resized along the channels", range(first, source.dim()))
    labels = tracer.labels(source)[:first] + [None] * spatial
    for result in tensors_in(out):
        tracer.set_labels(result, labels)


@rule_for("cat", "concat")
def _cat(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    tensors = [t for t in args[0] if t.dim() == out.dim()]  # torch.cat skips legacy empty tensors
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    labels: list[Ids | None] = []
    for dim in range(out.dim()):
        parts = [tracer.labels(t)[dim] for t in tensors]
        sizes = [t.shape[dim] for t in tensors]
        labels.append(concatenate(parts, sizes) if dim == axis else _tie_all(tracer, parts))
    tracer.set_labels(out, labels)


@rule_for("stack")
def _stack(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    parts = [tracer.labels(t) for t in args[0]]
    labels = [_tie_all(tracer, [part[dim] for part in parts]) for dim in range(out.dim() - 1)]
    labels.insert(axis, None)
    tracer.set_labels(out, labels)


@rule_for(
    "mean",
    "sum",
    "amax",
    "amin",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "linalg_vector_norm",
    "max",
    "min",
    "any",
)
def _reduce(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if "other" in names:
        _pointwise(tracer, func, args, kwargs, out)
        return
    dims = given.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(source.dim()))
    reduced = {dim % source.dim() for dim in dims} if source.dim() else set()
    tracer.freeze(source, f"{func._schema.name.removeprefix('aten::')} over the channels", sorted(reduced))
    kept = [None if dim in reduced else label for dim, label in enumerate(tracer.labels(source))]
    if not given.get("keepdim", False):
        kept = [label for dim, label in enumerate(kept) if dim not in reduced]
    for result in tensors_in(out):
        tracer.set_labels(result, kept)


@rule_for("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "flip", "roll", "sort", "topk")
def _along_dim(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    name = func._schema.name.removeprefix("aten::").strip("_")
    position = 2 if name in ("roll", "topk") else 1
    unsaid: int | list[int] = [] if name == "roll" else -1  # `roll` without dimensions shifts the flattened tensor
    dims = args[position] if len(args) > position else kwargs.get("dim", kwargs.get("dims", unsaid))
    dims = [dims] if isinstance(dims, int) else (list(dims) or list(range(source.dim())))
    mixed = {dim % source.dim() for dim in dims}
    tracer.freeze(source, f"{name} over the channels", sorted(mixed))
    for result in tensors_in(out):
        tracer.set_labels(result, [None if d in mixed else label for d, label in enumerate(tracer.labels(source))])


@rule_for("triu", "tril")
def _triangle(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    name = func._schema.name.removeprefix("aten::").strip("_")
    tracer.freeze(source, f"{name} over the channels", [source.dim() - 2, source.dim() - 1])
    tracer.set_labels(out, [*tracer.labels(source)[:-2], None, None])
