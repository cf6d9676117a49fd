"""The tensors of modules and inside nested values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then buffers, each tensor once under its first name.

    Raises:
        ValueError: If one of them is lazy.
    """
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{name!r} is lazy and has no shape yet; run one batch through the network first")
        yield name, tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor inside nested containers and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif value is None or isinstance(value, (int, float, str)):
        return
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for item in vars(value).values():
            yield from tensors_in(item)
