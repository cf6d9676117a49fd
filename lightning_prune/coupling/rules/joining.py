"""Rules for concatenation and stacking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_prune.coupling.rules.pointwise import is_same_for_all_channels, tie_all
from lightning_prune.coupling.rules.registry import rule_for
from lightning_prune.coupling.symbols.channel_ids import Ids
from lightning_prune.coupling.tracing.constant_values import (
    is_nonzero_masked,
    label_new_constant,
    nonzero_masked,
)
from lightning_prune.coupling.tracing.trace import concatenate
from lightning_prune.coupling.tracing.tracer import Tracer


@rule_for("cat", "concat")
def _cat(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    tensors = [t for t in args[0] if t.dim() == out.dim()]  # torch.cat skips legacy empty tensors
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    labels: list[Ids | None] = []
    for tensor in tensors:
        label_new_constant(tracer, tensor, axis)
    for dim in range(out.dim()):
        parts = [tracer.labels(t)[dim] for t in tensors]
        sizes = [t.shape[dim] for t in tensors]
        labels.append(concatenate(parts, sizes) if dim == axis else _common_label(tracer, tensors, dim))
    tracer.set_labels(out, labels)


@rule_for("stack")
def _stack(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    labels = [_common_label(tracer, args[0], dim) for dim in range(out.dim() - 1)]
    labels.insert(axis, None)
    tracer.set_labels(out, labels)


def _common_label(tracer: Tracer, tensors: Sequence[Tensor], dim: int) -> Ids | None:
    """The label along ``dim`` of ``tensors`` that are joined along another dimension."""
    parts = [t for t in tensors if not is_same_for_all_channels(tracer, t, tracer.labels(t), t.dim() - dim)]
    labels = [tracer.labels(t)[dim] for t in parts]
    label = tie_all(tracer, labels)
    if label is None:
        return None
    if len(parts) < len(tensors):
        return nonzero_masked(tracer, label)
    return next((own for own in labels if own is not None and is_nonzero_masked(tracer, own)), label)
