"""Rules for layers: convolutions, matrix products, norms and embeddings."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from lightning_prune.coupling.rules.registry import rule_for
from lightning_prune.coupling.symbols.channel_ids import Ids
from lightning_prune.coupling.symbols.traced_ints import TracedInt
from lightning_prune.coupling.tracing.activation_sites import add_macs, mark_inputs, mark_outputs, move_site_behind_norm
from lightning_prune.coupling.tracing.constant_values import all_nonzero_masked, is_nonzero_masked, nonzero_masked
from lightning_prune.coupling.tracing.trace import ENTRIES, KERNEL, Labels
from lightning_prune.coupling.tracing.tracer import Tracer


@rule_for("convolution", "_convolution", "convolution_overrideable")
def _convolution(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, weight, bias = args[:3]
    transposed, groups = bool(args[6]), int(args[8])
    channels = out.dim() - weight.dim() + 1  # dimension 1 with a batch, 0 without
    if any(part.channel > 1 for part in tracer.parts(weight)):  # not the weight of a layer
        tracer.freeze(weight, KERNEL, range(2, weight.dim()))
    labels = tracer.labels(source)
    source_ids = labels[channels]
    last = tracer.call_integers[-1] if tracer.call_integers else 0  # the last integer of F.conv2d is groups
    if isinstance(last, TracedInt) and int(last) == groups == source.shape[channels]:
        tracer.trace.size_equations.equate(last, tracer.traced_size(source, channels))
    out_ids = (_transposed if transposed else _forward)(tracer, source_ids, weight, groups)
    if bias is not None:
        tracer.tie(tracer.labels(bias)[0], out_ids)
    batch = labels[:channels] if bias is None else all_nonzero_masked(tracer, labels[:channels])
    spatial = enumerate(labels[channels + 1 :], start=channels + 1)
    space = [None if ids is None else _convolved(tracer, ids, source, weight, out, dim) for dim, ids in spatial]
    tracer.set_labels(out, [*batch, out_ids, *space])
    mark_outputs(tracer, weight, out, channels)
    positions = prod((source if transposed else out).shape[channels + 1 :]) * prod(out.shape[:channels])
    add_macs(tracer, positions * prod(weight.shape[2:]), weight.shape[:2], tracer.labels(weight)[:2])


def _convolved(tracer: Tracer, label: Ids, source: Tensor, weight: Tensor, out: Tensor, dim: int) -> Ids | None:
    """Channels along a spatial dimension of a convolution, as in efficient channel attention."""
    if out.shape[dim] != source.shape[dim] or weight.shape[:2] != (1, 1):
        tracer.channel_ids.freeze(label, tracer.forward_reason("convolves along the channels"))
        return None
    tracer.channel_ids.mark_inexact(
        label, tracer.forward_reason("convolves along the channels: each output depends on neighboring channels")
    )
    return nonzero_masked(tracer, label)


def _forward(tracer: Tracer, source_ids: Ids | None, weight: Tensor, groups: int) -> Ids | None:
    """Tie the input of a convolution to its weight (out, in / groups, ...); return its output channels."""
    out_ids, in_ids = tracer.labels(weight)[:2]
    if groups == 1:
        mark_inputs(tracer, weight, in_ids)
        tracer.tie(source_ids, in_ids)
        return out_ids
    if weight.shape[1] == 1:  # depthwise: every output channel belongs to one input channel
        multiplier = weight.shape[0] // groups
        tracer.tie(None if source_ids is None else np.repeat(source_ids, multiplier), out_ids)
        return out_ids
    mark_inputs(tracer, weight, in_ids)
    if in_ids is not None:
        tracer.channel_ids.mark_grouped(in_ids)
    _tie_groups(tracer, source_ids, groups, in_ids)
    _tie_groups(tracer, out_ids, groups)
    return out_ids


def _transposed(tracer: Tracer, source_ids: Ids | None, weight: Tensor, groups: int) -> Ids | None:
    """The same for a transposed convolution, with a weight of shape (in, out / groups, ...)."""
    in_ids, out_ids = tracer.labels(weight)[:2]
    mark_inputs(tracer, weight, in_ids)
    tracer.tie(source_ids, in_ids)
    if groups == 1:
        return out_ids
    if weight.shape[0] == groups:
        tracer.freeze(
            weight,
            tracer.forward_reason(f"computes {weight.shape[1]} channels from each of its inputs (groups={groups})"),
            [1],
        )
        return None if in_ids is None else np.repeat(in_ids, weight.shape[1])
    _tie_groups(tracer, in_ids, groups)
    return None if out_ids is None else np.tile(out_ids, groups)


def _tie_groups(tracer: Tracer, channels: Ids | None, groups: int, template: Ids | None = None) -> None:
    """Tie the same offset in every group, so that all groups lose the same number of channels.

    Args:
        tracer: Records the ties.
        channels: The channels of all groups, one group after another.
        groups: Number of groups.
        template: Channels that every group is tied to, by default the first group.
    """
    if channels is None:
        tracer.tie(None, template)
        return
    rows = channels.reshape(groups, -1)
    if rows.shape[1] == 1:
        tracer.channel_ids.freeze(
            channels, tracer.forward_reason(f"needs its {groups} groups, which have one channel each")
        )
        return
    for row in rows if template is not None else rows[1:]:
        tracer.tie(rows[0] if template is None else template, row)


@rule_for("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "vdot", "_int_mm")
def _matmul(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    has_bias = "add" in func._schema.name
    left, right = args[1:3] if has_bias else args[:2]
    vector = right.dim() == 1
    inner = right.dim() - (1 if vector else 2)
    a, b = tracer.labels(left), tracer.labels(right)
    mark_inputs(tracer, right, b[inner])
    mark_inputs(tracer, left, a[-1])
    tracer.tie(a[-1], b[inner])
    if (
        a[-1] is not None
        and b[inner] is not None
        and is_nonzero_masked(tracer, a[-1])
        and is_nonzero_masked(tracer, b[inner])
    ):
        tracer.channel_ids.mark_inexact(
            a[-1], tracer.forward_reason("sums over the channels, and masked ones are not 0 there")
        )
    labels: Labels = a[:-1] if vector else [*a[:-1], b[-1]]
    if left.dim() == 3:
        tracer.trace.attended += [ids for ids in (a[-1], b[inner], b[-1]) if ids is not None]
        tracer.tie(a[0], b[0])
        labels[0] = (
            (b[0] if is_nonzero_masked(tracer, a[0]) else a[0]) if a[0] is not None and b[0] is not None else None
        )
    if has_bias:
        labels[:-1] = all_nonzero_masked(tracer, labels[:-1])
    tracer.set_labels(out, labels)
    if has_bias:
        _tie_bias(tracer, args[0], out)
    mark_outputs(tracer, right, out, out.dim() - 1) if out.dim() else None
    dims = [*labels, a[-1] if a[-1] is not None else b[inner]]
    add_macs(tracer, 1, [*out.shape, left.shape[-1]], dims)


def _tie_bias(tracer: Tracer, bias: Tensor, out: Tensor) -> None:
    labels = tracer.labels(out)
    for back, label in enumerate(reversed(tracer.labels(bias)), start=1):
        if bias.shape[-back] == out.shape[-back] > 1:
            tracer.tie(label, labels[-back])


@rule_for("linear")
def _linear(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, weight = args[:2]
    out_ids, in_ids = tracer.labels(weight)
    mark_inputs(tracer, weight, in_ids)
    tracer.tie(tracer.labels(source)[-1], in_ids)
    bias = args[2] if len(args) > 2 else None
    others = tracer.labels(source)[:-1]
    tracer.set_labels(out, [*(others if bias is None else all_nonzero_masked(tracer, others)), out_ids])
    if bias is not None:
        _tie_bias(tracer, bias, out)
    mark_outputs(tracer, weight, out, out.dim() - 1)
    add_macs(tracer, prod(source.shape[:-1]), weight.shape, (out_ids, in_ids))


@rule_for(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_batch_norm_with_update", "_batch_norm_no_update", "_native_batch_norm_legit_functional", "miopen_batch_norm",
    "_batch_norm_with_update_functional",
)  # fmt: skip
def _batch_norm(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    labels = tracer.labels(source)
    source_ids = labels[1]
    for tensor in (a for a in args[1:5] if isinstance(a, Tensor) and a.dim() == 1):
        tracer.tie(source_ids, tracer.labels(tensor)[0])
    if args[3] is None:  # no running statistics: it normalizes by those of this batch
        for label in (ids for dim, ids in enumerate(labels) if dim != 1 and ids is not None):
            tracer.channel_ids.mark_inexact(label, "batch norm: its mean and variance run over the channels")
    tracer.set_labels(
        out[0], [*all_nonzero_masked(tracer, labels[:1]), source_ids, *all_nonzero_masked(tracer, labels[2:])]
    )
    move_site_behind_norm(tracer, args[1], source, out[0], 1)


@rule_for("native_layer_norm", "_fused_rms_norm")
def _layer_norm(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, shape = args[0], args[1]
    labels = tracer.labels(source)
    first = source.dim() - len(shape)
    for tensor in (a for a in args[2:4] if isinstance(a, Tensor)):
        for label, own in zip(labels[first:], tracer.labels(tensor), strict=True):
            tracer.tie(label, own)
    for label in labels[first:]:
        if label is not None:
            tracer.channel_ids.mark_inexact(label, "layer norm: its mean and variance run over the channels")
    if len(args) > 3 and args[3] is not None and func._schema.name == "aten::native_layer_norm":
        labels[:first] = all_nonzero_masked(tracer, labels[:first])
    tracer.set_labels(out[0], labels)
    move_site_behind_norm(tracer, args[2], source, out[0], source.dim() - 1)


@rule_for("native_group_norm")
def _group_norm(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, weight, bias, groups = args[0], args[1], args[2], int(args[6])
    labels = tracer.labels(source)
    source_ids = labels[1]
    for tensor in (weight, bias):
        if tensor is not None:
            tracer.tie(source_ids, tracer.labels(tensor)[0])
    if source_ids is not None:
        if groups > 1 and (groups < source.shape[1] or weight is None):  # otherwise there is one group for each weight
            _tie_groups(tracer, source_ids, groups)
        if groups < source.shape[1]:
            tracer.channel_ids.mark_inexact(source_ids, "group norm: its mean and variance run over the channels")
    for label in labels[2:]:
        if label is not None:
            tracer.channel_ids.mark_inexact(label, "group norm: its mean and variance run over the channels")
    if bias is not None:
        labels = [*all_nonzero_masked(tracer, labels[:1]), source_ids, *all_nonzero_masked(tracer, labels[2:])]
    tracer.set_labels(out[0], labels)
    move_site_behind_norm(tracer, weight, source, out[0], 1)


@rule_for("embedding")
def _embedding(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    weight, indices = args[:2]
    tracer.freeze(weight, ENTRIES, [0])
    tracer.set_labels(out, [None] * indices.dim() + [tracer.labels(weight)[1]])
    mark_outputs(tracer, weight, out, out.dim() - 1)
