"""Rules for recurrent layers: a hidden unit owns one row of every gate and a column of ``weight_hh``.

On a CPU, ATen decomposes most recurrent layers into matrix products, splits and gates, which have their own rules; on
the meta device ``network/meta_recurrence`` runs them as one operation. Two properties need rules here: the first
hidden state is a constant, and all layers and directions of one module have the same ``hidden_size``, because their
last states are stacked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from lightning_prune.coupling.rules.pointwise import tie_all
from lightning_prune.coupling.rules.registry import before_rule_for, rule_for
from lightning_prune.coupling.symbols.aten import bound_arguments
from lightning_prune.coupling.symbols.channel_ids import Ids
from lightning_prune.coupling.tracing.activation_sites import add_macs, mark_inputs
from lightning_prune.coupling.tracing.constant_values import (
    is_constant,
    is_nonzero_masked,
    label_constant,
    nonzero_masked,
)
from lightning_prune.coupling.tracing.trace import concatenate
from lightning_prune.coupling.tracing.tracer import Tracer

_STATE = "its first hidden state is an input"


@before_rule_for("mm", "addmm", "bmm", "baddbmm", "linear")
def _constant_operand(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    name = func._schema.name.removeprefix("aten::")
    left, weight = args[1:3] if "add" in name else args[:2]
    labels = tracer.labels(weight)
    label_constant(tracer, left, left.dim() - 1, labels[-1] if name == "linear" else labels[-2])


@rule_for("mkldnn_rnn_layer")
def _mkldnn(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    arguments = bound_arguments(func, args, kwargs)
    weights = [arguments[f"weight{number}"] for number in (0, 1, 2, 3)]
    source = arguments["input"]
    units = _layer(tracer, weights, tracer.labels(source)[-1], source.shape[0] * source.shape[1])
    outputs = _tie_states(tracer, (arguments["hx_"], arguments["cx_"]), units)
    for result in out[:3]:
        tracer.set_labels(result, [*[None] * (result.dim() - 1), outputs])


@rule_for("_cudnn_rnn", "miopen_rnn")
def _cudnn(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    arguments = bound_arguments(func, args, kwargs)
    weights, stride = list(arguments["weight"]), int(arguments["weight_stride0"])
    directions = 2 if arguments["bidirectional"] else 1
    if arguments.get("proj_size") or stride not in (2, 4):
        for tensor in weights:
            tracer.freeze(tensor, tracer.forward_reason("runs a recurrent layer with a projection (proj_size)"))
        return
    source = arguments["input"]
    in_ids = tracer.labels(source)[-1]
    steps = source.numel() // source.shape[-1]
    units: Ids | None = None
    for layer in range(0, len(weights) // stride, directions):
        layer_units = [
            _layer(tracer, weights[stride * (layer + d) : stride * (layer + d + 1)], in_ids, steps)
            for d in range(directions)
        ]
        units = tie_all(tracer, [*layer_units, *([] if units is None else [units])])
        in_ids = concatenate(layer_units, [0 if ids is None else len(ids) for ids in layer_units])
    outputs = _tie_states(tracer, (arguments["hx"], arguments["cx"]), units)
    if in_ids is not None and outputs is not units:
        in_ids = nonzero_masked(tracer, in_ids)
    tracer.set_labels(out[0], [*[None] * (out[0].dim() - 1), in_ids])
    for state in out[1:3]:
        if state.numel():
            tracer.set_labels(state, [*[None] * (state.dim() - 1), outputs])


def _layer(tracer: Tracer, weights: list[Tensor], source_ids: Ids | None, steps: int) -> Ids | None:
    """Tie the gates of one layer and direction; return its hidden units."""
    from_input, from_hidden = weights[:2]
    in_ids, units = tracer.labels(from_input)[1], tracer.labels(from_hidden)[1]
    mark_inputs(tracer, from_input, in_ids)
    mark_inputs(tracer, from_hidden, units)
    tracer.tie(source_ids, in_ids)
    for tensor in weights:
        rows = tracer.labels(tensor)[0] if tensor.dim() else None
        if rows is not None and units is not None:
            for gate in rows.reshape(-1, len(units)):
                tracer.tie(units, gate)
    for tensor, columns in ((from_input, in_ids), (from_hidden, units)):
        add_macs(tracer, steps, tensor.shape, (tracer.labels(tensor)[0], columns))
    return units


def _tie_states(tracer: Tracer, states: Iterable[Tensor | None], units: Ids | None) -> Ids | None:
    """Tie the first states to the hidden units and return the labels of the last: nonzero-masked if the first are."""
    for state in states:
        _tie_state(tracer, state, units)
    known = [tracer.labels(state)[-1] for state in states if state is not None and state.numel()]
    nonzero = any(label is not None and is_nonzero_masked(tracer, label) for label in known)
    return nonzero_masked(tracer, units) if nonzero and units is not None else units


def _tie_state(tracer: Tracer, state: Tensor | None, units: Ids | None) -> None:
    if state is None or not state.numel():
        return
    label_constant(tracer, state, state.dim() - 1, units)
    label = tracer.labels(state)[-1]
    if label is not None or not is_constant(tracer, state):
        tracer.tie(label, units, tracer.reason_at(_STATE))


@rule_for("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell")
def _fused_cell(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    from_input, from_hidden, state, *biases = args[:5]
    width = state.shape[-1]
    first = tracer.labels(from_input)[-1]
    rows = [tracer.labels(t)[-1] for t in (from_input, from_hidden, *biases) if isinstance(t, Tensor)]
    gates = tie_all(tracer, [first, *rows] if first is not None else rows)
    units: Ids | None = None
    if gates is not None:
        units = tie_all(tracer, list(gates.reshape(-1, width)))
    _tie_state(tracer, state, units)
    for result in out[:-1]:
        tracer.set_labels(result, [*[None] * (result.dim() - 1), units])


@rule_for("_pack_padded_sequence")
def _pack(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    source = args[0]
    tracer.freeze(source, tracer.forward_reason("packs sequences along this dimension"), [0, 1])
    tracer.set_labels(out[0], [None, *tracer.labels(source)[2:]])
