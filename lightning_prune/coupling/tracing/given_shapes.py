"""Shapes as they are spelled in the call that is running."""

from __future__ import annotations

from torch import Tensor

from lightning_prune.coupling.symbols.sizes import Number, SizeOf
from lightning_prune.coupling.tracing.trace import Part
from lightning_prune.coupling.tracing.tracer import Tracer


def shape_given(tracer: Tracer, tensor: Tensor) -> dict[int, int]:
    """Dimension of ``tensor`` -> the number that the call now running was given for it."""
    shape = tuple(tensor.shape)
    if tracer.called == "unflatten":
        dim, *sizes = tracer.given
        first = dim if dim >= 0 else dim + tensor.dim() - len(sizes) + 1
        return {first + n: size for n, size in enumerate(sizes) if int(size) != -1}
    for start in range(len(tracer.given) - len(shape), -1, -1):
        last = tracer.given[start : start + len(shape)]
        if all(g in (-1, size) for g, size in zip(map(int, last), shape, strict=True)):
            return {dim: number for dim, number in enumerate(last) if int(number) != -1}
    return {}


def label_by_numbers(tracer: Tracer, tensor: Tensor) -> None:
    """Let ``tensor`` carry the channels that the sizes it was made with count."""
    taken = {dim for part in tracer.parts(tensor) for dim in part.dims}
    made = [
        Part.along(dim, number.expression.ids)
        for dim, number in shape_given(tracer, tensor).items()
        if isinstance(number, Number)
        and isinstance(number.expression, SizeOf)
        and number.book is tracer.trace.book
        and dim not in taken
        and tensor.shape[dim] > 1
    ]
    tracer.set_parts(tensor, [*tracer.parts(tensor), *made])
