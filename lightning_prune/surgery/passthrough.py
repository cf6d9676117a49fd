"""Identity modules, which replace removed modules."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn


class Passthrough(nn.Identity):
    """Identity that returns its first argument and ignores all others, such as masks, a context or flags.

    Example:
        >>> import torch
        >>> Passthrough()(torch.ones(2), None, is_causal=True)
        tensor([1., 1.])
    """

    def forward(self, input: Tensor, /, *others: Any, **named: Any) -> Tensor:  # type: ignore[override]
        """Return the first argument; a keyword argument may be named ``input`` as well."""
        return input


def identity_for(module: nn.Module) -> nn.Identity:
    """The identity for ``module``: ``nn.Identity``, or ``Passthrough`` where it takes more than one argument."""
    try:
        takes = inspect.signature(module.forward).parameters
    except ValueError:  # written in C++
        return Passthrough()
    one = len(takes) == 1 and all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in takes.values())
    return nn.Identity() if one else Passthrough()


def is_identity(module: nn.Module | None) -> bool:
    """Whether a module is an identity that replaces a removed module."""
    return type(module) in (nn.Identity, Passthrough)
