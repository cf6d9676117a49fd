"""Names of modules and tensors."""

from __future__ import annotations

from collections.abc import Iterable


def is_inside(name: str, paths: Iterable[str]) -> bool:
    """Whether ``name`` is one of ``paths``, or below one.

    Example:
        >>> is_inside("layer1.0.conv1.weight", ["layer1.0"]), is_inside("layer1.01", ["layer1.0"])
        (True, False)
    """
    return any(f"{name}.".startswith(f"{path}.") for path in paths)
