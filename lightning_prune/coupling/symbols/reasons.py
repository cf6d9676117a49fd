"""Texts for the reasons why channels are frozen: sentences about the user's code."""

from __future__ import annotations

import re
import sys
from functools import cache
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

_PREFIX = re.compile(r"^(native_|cudnn_|miopen_|mkldnn_|unsafe_|safe_|thnn_fused_)+")
_SUFFIX = re.compile(
    r"(_legit|_no_training|_functional|_with_update|_no_update|_forward|_forward_only|_with_indices|_impl|_interface"
    r"|_generator|_overrideable|_cpu_fallback|_aa|_ex)+$"
)
_NAMES = {
    "unique2": "unique", "im2col": "unfold", "col2im": "fold", "constant_pad_nd": "pad", "trilinear": "bilinear",
    "fft_r2c": "fft", "fft_c2r": "fft", "fft_c2c": "fft", "linalg_matrix_exp": "matrix_exp",
    "cross_entropy_loss": "cross_entropy", "local_scalar_dense": "item", "to_copy": "to", "euclidean_dist": "cdist",
    "grid_sampler_2d": "grid_sample", "grid_sampler_3d": "grid_sample", "grid_sampler": "grid_sample",
}  # fmt: skip
_VERBS = {
    "add": "adds it to", "mul": "multiplies it by", "cat": "concatenates it with", "stack": "stacks it with",
    "convolution": "convolves", "batch_norm": "normalizes", "layer_norm": "normalizes", "group_norm": "normalizes",
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "linear"), "takes its matrix product with"),
}  # fmt: skip


@cache
def public_name(func: Any) -> str:
    """The name by which PyTorch's documentation calls an ATen operation: ``softmax`` for ``aten::_softmax``."""
    space, _, name = func._schema.name.rpartition("::")
    if space not in ("aten", "torchvision"):
        return f"{space}::{name}"
    plain = _SUFFIX.sub("", _PREFIX.sub("", name.strip("_")))
    return _NAMES.get(plain, plain.replace("linalg_", "linalg."))


def called_function(func: Any) -> str:
    """The PyTorch function that the forward pass calls and that runs the ATen operation ``func``.

    It is looked up on the stack, so that it costs nothing where every operation has a rule.
    """
    frame: Any = sys._getframe()
    while frame is not None:
        local = frame.f_locals
        if frame.f_code.co_name == "__torch_function__" and isinstance(local.get("self"), TorchFunctionMode):
            name = resolve_name(local["func"]) or getattr(local["func"], "__name__", None)
            return public_name(func) if name is None else str(name)
        frame = frame.f_back
    return public_name(func)


def pairing(func: Any, other: Tensor | None, name: str | None, why: str) -> str:
    """What forward does where ``func`` pairs channels with a tensor that freezes them.

    Args:
        func: The ATen operation.
        other: That tensor, if it is known.
        name: Its name, if it is a parameter or buffer.
        why: Why it freezes the channels.
    """
    tensor = "a tensor" if name is None else repr(name)
    shape = "" if other is None else f" of shape {tuple(other.shape)}"
    verb = _VERBS.get(public_name(func), f"combines it by {public_name(func)} with")
    return f"{verb} {tensor}{shape}, {why}"
