"""Rules for operations on images: pooling, resizing, sampling, unfolding and pixel shuffles."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_prune.coupling.rules.pointwise import tie_all
from lightning_prune.coupling.rules.registry import freeze_all, rule_for
from lightning_prune.coupling.symbols.aten import op_name
from lightning_prune.coupling.symbols.channel_ids import NO_CHANNEL, Ids
from lightning_prune.coupling.symbols.reasons import public_name
from lightning_prune.coupling.tracing.activation_sites import mark_inputs, mark_outputs
from lightning_prune.coupling.tracing.trace import KERNEL
from lightning_prune.coupling.tracing.tracer import Tracer
from lightning_prune.network.tensors import tensors_in

_RESIZED = "pools, pads or resizes along the channels"


@rule_for(
    "max_pool2d_with_indices", "max_pool3d_with_indices", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "adaptive_avg_pool1d", "max_pool2d", "mkldnn_max_pool2d",
    "mkldnn_max_pool3d", "mkldnn_adaptive_avg_pool2d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
    "_upsample_lanczos2d_aa", "upsample_linear1d", "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d",
    "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "fractional_max_pool2d",
    "fractional_max_pool3d",
)  # fmt: skip
def _spatial(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    first = source.dim() - _spatial_dims(func)
    tracer.freeze(source, tracer.forward_reason(_RESIZED), range(first, source.dim()))
    labels = [*tracer.labels(source)[:first], *[None] * (source.dim() - first)]
    for result in tensors_in(out):
        tracer.set_labels(result, labels)


def _spatial_dims(func: Any) -> int:
    return next((int(d) for d in op_name(func) if d.isdigit()), 2)


@rule_for("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _average(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, labels = args[0], tracer.labels(args[0])
    count = _spatial_dims(func)
    kernel, stride = _each(args[1], count), _each(args[2] if len(args) > 2 else kwargs.get("stride"), count)
    padding = _each(args[3] if len(args) > 3 else kwargs.get("padding", 0), count)
    for number, dim in enumerate(range(source.dim() - count, source.dim())):
        if (stride or kernel)[number] == 1 and padding[number] == 0:
            labels[dim] = _averaged(tracer, labels[dim], kernel[number])
        elif labels[dim] is not None:
            tracer.freeze(source, tracer.forward_reason(_RESIZED), [dim])
            labels[dim] = None
    tracer.set_labels(out, labels)


def _each(value: Any, count: int) -> list[int]:
    given = [value] if isinstance(value, int) else list(value or [])
    return given * count if len(given) == 1 else given


def _averaged(tracer: Tracer, label: Ids | None, kernel: int) -> Ids | None:
    """Labels after an average over neighboring channels, as in local response norm."""
    if label is None or kernel == 1:
        return label
    real = np.flatnonzero(label != NO_CHANNEL)
    if len(real) != real[-1] - real[0] + 1 or len(label) - len(real) != kernel - 1:
        tracer.channel_ids.freeze(label, tracer.forward_reason(_RESIZED))
        return None
    tracer.channel_ids.mark_inexact(label, tracer.forward_reason("averages each channel with neighboring channels"))
    return label[real]


@rule_for("max_unpool2d", "max_unpool3d")
def _unpool(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    first = out.dim() - _spatial_dims(func)
    tracer.freeze(args[0], tracer.forward_reason(_RESIZED), range(first, out.dim()))
    tracer.freeze(args[1], tracer.forward_reason(_RESIZED), range(first, out.dim()))
    given = zip(tracer.labels(args[0])[:first], tracer.labels(args[1])[:first], strict=True)
    tracer.set_labels(out, [*(tie_all(tracer, pair) for pair in given), *[None] * (out.dim() - first)])


@rule_for("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler", "_grid_sampler_2d_cpu_fallback")
def _grid_sample(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, grid = args[:2]
    tracer.freeze(grid, tracer.forward_reason("uses its values as positions in an image"))
    tracer.freeze(source, tracer.forward_reason("samples along the channels"), range(2, source.dim()))
    tracer.set_labels(out, [*tracer.labels(source)[:2], *[None] * (out.dim() - 2)])


@rule_for("affine_grid_generator", "torchvision::nms", "nonzero", "_unique2", "unique_dim", "unique_consecutive")
def _to_positions(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    for tensor in tensors_in([args, kwargs]):
        tracer.freeze(tensor, tracer.forward_reason(f"computes positions from its values ({public_name(func)})"))


@rule_for("torchvision::roi_align", "torchvision::roi_pool", "torchvision::ps_roi_align", "torchvision::ps_roi_pool")
def _regions(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, regions = args[:2]
    tracer.freeze(regions, tracer.forward_reason("uses its values as the boxes of regions"))
    tracer.freeze(source, tracer.forward_reason("samples along the channels"), [0, 2, 3])
    label = tracer.labels(source)[1]
    if "::ps_" in op_name(func) and label is not None:  # every output channel reads one input channel for each bin
        label = _blocks(tracer, label, source.shape[1] // out[0].shape[1])
    for result in tensors_in(out):
        tracer.set_labels(result, [None, label, None, None])


_BLOCKWISE = {"pixel_shuffle": "shuffles", "pixel_unshuffle": "shuffles", "im2col": "unfolds", "col2im": "folds"}


@rule_for(*_BLOCKWISE)
def _blockwise(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Operations that replace each channel by several adjacent ones, or the reverse."""
    source, name = args[0], op_name(func)
    channels = source.dim() - (2 if name == "col2im" else 3)
    tracer.freeze(
        source, tracer.forward_reason(f"{_BLOCKWISE[name]} along the channels"), range(channels + 1, source.dim())
    )
    labels = tracer.labels(source)[: channels + 1]
    label, before, after = labels[-1], source.shape[channels], out.shape[channels]
    if label is not None:
        labels[-1] = _blocks(tracer, label, before // after) if after < before else np.repeat(label, after // before)
    tracer.set_labels(out, [*labels, *[None] * (out.dim() - channels - 1)])


@rule_for("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    labels, groups = tracer.labels(args[0]), int(args[1])
    label = labels[1]
    if label is not None:
        rows = label.reshape(groups, -1)
        tie_all(tracer, list(rows))  # every group must lose the same number
        labels[1] = rows.T.ravel()
    tracer.set_labels(out, labels)


def _blocks(tracer: Tracer, label: Ids, size: int) -> Ids:
    """One id for every ``size`` adjacent channels, which become one channel and are tied."""
    rows = label.reshape(-1, size)
    tie_all(tracer, list(rows.T))
    out_ids: Ids = rows[:, 0]
    return out_ids


@rule_for("torchvision::deform_conv2d")
def _deformable(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, weight, offset, mask, bias = args[:5]
    groups = int(args[11])
    for where in (offset, mask):
        tracer.freeze(
            where, tracer.forward_reason("uses its values as the sampling positions of a deformable convolution")
        )
    tracer.freeze(weight, KERNEL, [2, 3])
    in_ids, out_ids = tracer.labels(weight)[1], tracer.labels(weight)[0]
    if groups == 1 and int(args[12]) == 1:
        mark_inputs(tracer, weight, in_ids)
        tracer.tie(tracer.labels(source)[1], in_ids)
    else:
        freeze_all(tracer, [source, weight], "calls a deformable convolution with groups, which has no rule yet")
    tracer.tie(tracer.labels(bias)[0], out_ids) if out_ids is not None and bias.numel() == len(out_ids) else None
    tracer.set_labels(out, [None, out_ids, None, None])
    mark_outputs(tracer, weight, out, 1)
