"""Names and arguments of ATen operations."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def op_name(func: Any) -> str:
    """The name of an ATen overload without namespace and in-place suffix: ``add`` for ``aten::add_.Tensor``."""
    name: str = func._schema.name.removeprefix("aten::")
    return name if name.startswith("__") else name.rstrip("_")


def bound_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by the names of the schema, with defaults for those that were not given."""
    arguments = func._schema.arguments
    given = {argument.name: argument.default_value for argument in arguments}
    given.update(zip((argument.name for argument in arguments), args, strict=False))
    given.update(kwargs)
    return given
