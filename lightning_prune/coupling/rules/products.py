"""Rules for gates, contractions, Fourier transforms, lookups and weights computed from other weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from lightning_prune.coupling.rules.pointwise import tie_all
from lightning_prune.coupling.rules.registry import freeze_all, rule_for
from lightning_prune.coupling.symbols.aten import bound_arguments, op_name
from lightning_prune.coupling.symbols.reasons import public_name
from lightning_prune.coupling.tracing.activation_sites import add_macs, mark_inputs, mark_outputs
from lightning_prune.coupling.tracing.constant_values import is_nonzero_masked
from lightning_prune.coupling.tracing.trace import ENTRIES, Labels
from lightning_prune.coupling.tracing.tracer import Tracer

_EXPERTS = "selects experts by index"


@rule_for("glu")
def _glu(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    labels = tracer.labels(args[0])
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", -1)) % len(labels)
    label = labels[axis]
    if label is not None:
        values, gates = np.split(label, 2)
        tracer.tie(values, gates)
        labels[axis] = values  # value times sigmoid(gate): 0 where the value is
    tracer.set_labels(out, labels)


@rule_for("_cdist_forward", "_euclidean_dist", "cdist")
def _distances(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    left, right = args[:2]
    a, b = tracer.labels(left), tracer.labels(right)
    tracer.tie(a[-1], b[-1])
    for label in (a[-1], b[-1]):
        if label is not None and is_nonzero_masked(tracer, label):
            tracer.channel_ids.mark_inexact(
                label, tracer.forward_reason("computes distances over the channels: masked ones are not 0 there")
            )
    labels: Labels = [None] * out.dim()
    labels[-2], labels[-1] = a[-2], b[-2]
    for dim in range(out.dim() - 2):
        labels[dim] = tie_all(tracer, [x[dim] for x in (a, b) if len(x) == out.dim()])
    tracer.set_labels(out, labels)


@rule_for("_trilinear")
def _trilinear(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    arguments = bound_arguments(func, args, kwargs)
    rows, present = [], []
    for number in (1, 2, 3):
        tensor, new = arguments[f"i{number}"], sorted(arguments[f"expand{number}"])
        labels: Labels = tracer.labels(tensor)
        own = [True] * len(labels)
        for dim in new:
            labels.insert(dim, None)
            own.insert(dim, False)
        rows.append(labels)
        present.append(own)
    dims = range(len(rows[0]))
    tied = [tie_all(tracer, [row[d] for row, own in zip(rows, present, strict=True) if own[d]]) for d in dims]
    summed = {dim % len(tied) for dim in arguments["sumdim"]}
    for dim in summed:
        label = tied[dim]
        if label is not None:
            for number, row in enumerate(rows, start=1):
                if present[number - 1][dim] and row[dim] is not None:
                    mark_inputs(tracer, arguments[f"i{number}"], row[dim])
    tracer.set_labels(out, [label for dim, label in enumerate(tied) if dim not in summed])
    mark_outputs(tracer, arguments["i2"], out, out.dim() - 1)


@rule_for("_grouped_mm")
def _grouped_product(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    left, right = args[:2]  # (rows, in) and (experts, in, out), where the rows of one expert are contiguous
    a, b = tracer.labels(left), tracer.labels(right)
    if (left.dim(), right.dim()) != (2, 3):
        freeze_all(
            tracer, [left, right], "calls grouped_mm on tensors of other shapes than (rows, in) and (experts, in, out)"
        )
        return
    tracer.freeze(left, tracer.forward_reason(_EXPERTS), [0])
    tracer.freeze(right, tracer.forward_reason(_EXPERTS), [0])
    mark_inputs(tracer, right, b[1])
    tracer.tie(a[1], b[1])
    tracer.set_labels(out, [None, b[2]])
    mark_outputs(tracer, right, out, 1)
    add_macs(tracer, 1, [*out.shape, left.shape[1]], [None, b[2], b[1]])


@rule_for("_fft_r2c", "_fft_c2r", "_fft_c2c")
def _fourier(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source, dims = args[0], {dim % args[0].dim() for dim in args[1]}
    tracer.freeze(source, tracer.forward_reason("computes a Fourier transform over the channels"), sorted(dims))
    tracer.set_labels(out, [None if d in dims else label for d, label in enumerate(tracer.labels(source))])


@rule_for("view_as_real", "view_as_complex")
def _complex_view(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    labels = tracer.labels(args[0])
    if op_name(func) == "view_as_complex":
        tracer.freeze(args[0], tracer.forward_reason("uses them as real and imaginary parts"), [len(labels) - 1])
        tracer.set_labels(out, labels[:-1])
    else:
        tracer.set_labels(out, [*labels, None])


@rule_for("_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    weight = args[0]
    tracer.freeze(weight, ENTRIES, [0])
    tracer.set_labels(out[0], [None, tracer.labels(weight)[1]])
    mark_outputs(tracer, weight, out[0], 1)


@rule_for("_weight_norm_interface", "_weight_norm")
def _weight_norm(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    direction, length = args[:2]
    labels = tracer.labels(direction)
    for dim, label in enumerate(tracer.labels(length)):
        if length.shape[dim] > 1:
            tracer.tie(labels[dim], label)
    tracer.set_labels(out[0] if isinstance(out, tuple) else out, labels)


@rule_for(
    "nll_loss_forward", "nll_loss2d_forward", "nll_loss", "nll_loss2d", "cross_entropy_loss", "_ctc_loss", "linalg_det",
    "linalg_inv_ex", "linalg_matrix_exp", "_linalg_svd", "linalg_qr", "_linalg_eigh", "linalg_cholesky_ex",
)  # fmt: skip
def _over_channels(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    freeze_all(
        tracer, [value for value in args if isinstance(value, Tensor)], f"calls {public_name(func)} over the channels"
    )
