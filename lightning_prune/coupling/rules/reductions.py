"""Rules for reductions and scans. Over channels, most of them depend on the number of channels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from lightning_prune.coupling.rules.pointwise import pointwise
from lightning_prune.coupling.rules.registry import rule_for
from lightning_prune.coupling.symbols.aten import bound_arguments, op_name
from lightning_prune.coupling.symbols.channel_ids import Ids
from lightning_prune.coupling.symbols.reasons import public_name
from lightning_prune.coupling.tracing.constant_values import all_nonzero_masked, is_nonzero_masked, nonzero_masked
from lightning_prune.coupling.tracing.tracer import Tracer
from lightning_prune.network.tensors import tensors_in

_SUMS = frozenset(("sum", "nansum", "linalg_vector_norm", "norm", "any", "count_nonzero", "cumsum"))
_NORMS = frozenset(("linalg_vector_norm", "norm"))
_WITH_POSITIONS = frozenset(("max", "min", "argmax", "argmin", "kthvalue", "median", "nanmedian", "mode", "topk"))


@rule_for(
    "mean", "nanmean", "sum", "nansum", "amax", "amin", "var", "std", "var_mean", "std_mean", "linalg_vector_norm",
    "norm", "any", "all", "prod", "logsumexp", "count_nonzero", "max", "min", "aminmax", "argmax", "argmin",
    "kthvalue", "median", "nanmedian", "mode", "topk",
)  # fmt: skip
def _reduce(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, arguments = args[0], bound_arguments(func, args, kwargs)
    if "other" in arguments:
        pointwise(tracer, func, args, kwargs, out)
        return
    reduced = _dims(arguments.get("dim"), source.dim())
    labels = tracer.labels(source)
    kept = [None if dim in reduced else label for dim, label in enumerate(labels)]
    if not arguments.get("keepdim", op_name(func) == "topk"):
        kept = [label for dim, label in enumerate(kept) if dim not in reduced]
    if op_name(func) == "logsumexp":
        kept = all_nonzero_masked(tracer, kept)
    for result in tensors_in(out):
        tracer.set_labels(result, kept)
    positions = [x for x in tensors_in(out) if x.dtype == torch.int64] if op_name(func) in _WITH_POSITIONS else []
    for label in (labels[dim] for dim in reduced):
        if label is not None:
            mark_reduced(tracer, func, arguments, label)
            if op_name(func) in _NORMS and tracer.name(source) is not None:
                tracer.channel_ids.mark_inexact(
                    label, tracer.forward_reason("computes the norm of a weight over its input channels")
                )
            for tensor in positions:
                tracer.set_positions(tensor, label)


def mark_reduced(tracer: Tracer, func: Any, arguments: dict[str, Any], label: Ids) -> None:
    """Mark a reduction over the channels ``label`` as inexact: zeros change a mean or a maximum, but not a sum."""
    name = op_name(func)
    order = arguments.get("ord", arguments.get("p", 2))
    if name not in _SUMS or (isinstance(order, (int, float)) and order < 0):
        tracer.channel_ids.mark_inexact(
            label, tracer.forward_reason(f"calls {public_name(func)} over the channels: masked ones take part in it")
        )
    elif is_nonzero_masked(tracer, label):
        tracer.channel_ids.mark_inexact(
            label, tracer.forward_reason(f"calls {public_name(func)} over the channels: masked ones are not 0 there")
        )


def _dims(dims: int | Iterable[int] | None, count: int) -> set[int]:
    if isinstance(dims, int):
        dims = [dims]
    chosen = list(dims) if dims is not None else []
    return {dim % count for dim in chosen or range(count)} if count else set()


@rule_for("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "cumsum")
def _scan(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    arguments = bound_arguments(func, args, kwargs)
    source, axis = args[0], arguments["dim"]
    labels = tracer.labels(source)
    for dim in _dims(axis, source.dim()):
        label = labels[dim]
        if label is not None:
            mark_reduced(tracer, func, arguments, label)
            labels[dim] = nonzero_masked(tracer, label)
    if "softmax" in op_name(func):  # softmax maps 0 to other values
        labels = all_nonzero_masked(tracer, labels)
    tracer.set_labels(out, labels)


@rule_for("flip")
def _flip(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    labels = tracer.labels(args[0])
    for dim in _dims(args[1], args[0].dim()):
        label = labels[dim]
        labels[dim] = None if label is None else label[::-1].copy()
    tracer.set_labels(out, labels)


@rule_for(
    "roll", "sort", "argsort", "cummax", "cummin", "cumprod", "logcumsumexp",
)  # fmt: skip
def _positions(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, arguments = args[0], bound_arguments(func, args, kwargs)
    axis = arguments.get("dim", arguments.get("dims"))
    reduced = _dims(axis, source.dim())
    tracer.freeze(source, tracer.forward_reason(f"calls {public_name(func)} over the channels"), sorted(reduced))
    labels = [None if dim in reduced else label for dim, label in enumerate(tracer.labels(source))]
    if op_name(func) == "logcumsumexp":
        labels = all_nonzero_masked(tracer, labels)
    for result in tensors_in(out):
        same = result.dim() == source.dim()
        tracer.set_labels(result, labels if same else [x for dim, x in enumerate(labels) if dim not in reduced])


@rule_for("triu", "tril")
def _triangle(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    tracer.freeze(
        source,
        tracer.forward_reason(f"calls {public_name(func)} over the channels"),
        [source.dim() - 2, source.dim() - 1],
    )
    tracer.set_labels(out, [*tracer.labels(source)[:-2], None, None])
