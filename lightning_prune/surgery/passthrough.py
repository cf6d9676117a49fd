"""What takes the place of a removed module."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn


class Passthrough(nn.Identity):
    """Returns its first argument and ignores all others, as ``nn.Identity`` refuses to: masks, a context, flags.

    Example:
        >>> import torch
        >>> Passthrough()(torch.ones(2), None, is_causal=True)
        tensor([1., 1.])
    """

    def forward(self, input: Tensor, /, *others: Any, **named: Any) -> Tensor:  # type: ignore[override]
        """The first argument; another may be named ``input``."""
        return input


def identity_for(module: nn.Module) -> nn.Identity:
    """What hands on the input of ``module``: PyTorch's own identity, or where more can be passed a ``Passthrough``."""
    try:
        takes = inspect.signature(module.forward).parameters
    except ValueError:  # written in C++
        return Passthrough()
    one = len(takes) == 1 and all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in takes.values())
    return nn.Identity() if one else Passthrough()


def is_identity(module: nn.Module | None) -> bool:
    """Whether it is what takes the place of a removed module."""
    return type(module) in (nn.Identity, Passthrough)
