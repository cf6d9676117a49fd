"""The rule for pointwise operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_prune.coupling.rules.registry import rule_for
from lightning_prune.coupling.symbols.aten import op_name
from lightning_prune.coupling.symbols.channel_ids import Ids
from lightning_prune.coupling.symbols.reasons import public_name
from lightning_prune.coupling.tracing.constant_values import (
    is_constant,
    is_nonzero_masked,
    label_constant,
    nonzero_masked,
)
from lightning_prune.coupling.tracing.trace import Labels
from lightning_prune.coupling.tracing.tracer import Tracer
from lightning_prune.network.tensors import tensors_in


@rule_for(  # pointwise operations that PyTorch does not tag as such
    "hardswish", "hardsigmoid", "hardtanh", "silu", "gelu", "leaky_relu", "elu", "celu", "selu", "softplus", "mish",
    "log_sigmoid_forward", "relu6", "threshold", "rrelu_with_noise", "_prelu_kernel", "where", "softshrink",
    "hardshrink", "masked_fill", "lerp", "complex", "polar", "angle", "clamp", "real", "imag", "bucketize",
    "mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
)  # fmt: skip
def pointwise(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Tie the channels of the operands one by one, aligned from the right."""
    inputs = tensors_in([args, kwargs])
    if len(inputs) == 1 and inputs[0] is args[0] and (op_name(func) == "mul" or op_name(func) in _ZERO_AT_ZERO):
        for result in tensors_in(out):
            tracer.set_parts(result, tracer.parts(inputs[0]))
        return
    known = [tracer.labels(tensor) for tensor in inputs]
    for result in tensors_in(out):
        labels: list[Ids | None] = []
        if result.dim() == 0:  # a loss with a reduction
            for tensor in inputs:
                tracer.freeze(tensor, tracer.forward_reason(f"calls {public_name(func)} over the channels"))
        for back in range(result.dim(), 0, -1):
            size = result.shape[-back]
            operands = [
                (tensor, own[-back], is_same_for_all_channels(tracer, tensor, own, back))
                for tensor, own in zip(inputs, known, strict=True)
                if tensor.dim() >= back and tensor.shape[-back] == size > 1
            ]
            label = _pointwise_label(tracer, func, args, back, [own for _, own, constant in operands if not constant])
            for tensor, _, constant in operands:
                if constant:
                    label_constant(tracer, tensor, tensor.dim() - back, label)
            labels.append(label)
        tracer.set_labels(result, labels)


def is_same_for_all_channels(tracer: Tracer, tensor: Tensor, labels: Labels, back: int) -> bool:
    """Whether ``tensor`` has the same values for all channels: it is broadcast, or constant.

    If its size does not follow the channels, the dry run of the plan fails.
    """
    return labels[-back] is None and (tensor.stride()[-back] == 0 or is_constant(tracer, tensor))


def _pointwise_label(tracer: Tracer, func: Any, args: tuple[Any, ...], back: int, labels: Labels) -> Ids | None:
    label = tie_all(tracer, labels)
    if label is None:
        return None
    zero = [_zero(tracer, argument, back) for argument in args]
    if not _stays_zero(op_name(func), args, zero):
        return nonzero_masked(tracer, label)
    exact = (other for other in labels if other is not None and not is_nonzero_masked(tracer, other))
    return next(exact, label)


def _zero(tracer: Tracer, argument: Any, back: int) -> bool:
    """Whether an operand is 0 in masked channels of the dimension ``-back``."""
    if not isinstance(argument, Tensor):
        return isinstance(argument, (int, float)) and argument == 0
    label = tracer.labels(argument)[-back] if argument.dim() >= back else None
    return label is not None and not is_nonzero_masked(tracer, label)


_ZERO_AT_ZERO = frozenset((
    "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "silu", "gelu", "mish", "hardswish",
    "rrelu_with_noise", "_prelu_kernel", "softshrink", "hardshrink", "tanh", "sin", "tan", "sinh", "asin",
    "asinh", "atan", "atanh", "erf", "abs", "neg", "sqrt", "square", "sign", "sgn", "ceil", "floor", "round",
    "trunc", "frac", "log1p", "expm1", "nan_to_num", "deg2rad", "rad2deg", "conj", "_conj", "div", "real",
    "imag", "angle", "positive", "copy", "conj_physical", "remainder", "fmod",
))  # fmt: skip


def _stays_zero(name: str, args: tuple[Any, ...], zero: list[bool]) -> bool:
    """Whether a masked channel is 0 after an operation; ``zero`` lists whether it is 0 in each argument."""
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
    """Tie all ``labels`` and return one of them; where one of them is None, the others are frozen."""
    known = next((label for label in labels if label is not None), None)
    if known is None:
        return None
    for label in labels:
        if label is not known:
            tracer.tie(known, label)
    return None if any(label is None for label in labels) else known
