"""The sizes that the Python code has given for the result of the running call."""

from __future__ import annotations

from torch import Tensor

from lightning_prune.coupling.symbols.sizes import SizeOf
from lightning_prune.coupling.symbols.traced_ints import TracedInt
from lightning_prune.coupling.tracing.trace import Part
from lightning_prune.coupling.tracing.tracer import Tracer


def given_sizes(tracer: Tracer, tensor: Tensor) -> dict[int, int]:
    """Dimension of ``tensor`` -> the integer that the running call was given for its size."""
    shape = tuple(tensor.shape)
    if tracer.call_name == "unflatten":
        dim, *sizes = tracer.call_integers
        first = dim if dim >= 0 else dim + tensor.dim() - len(sizes) + 1
        return {first + n: size for n, size in enumerate(sizes) if int(size) != -1}
    for start in range(len(tracer.call_integers) - len(shape), -1, -1):
        last = tracer.call_integers[start : start + len(shape)]
        if all(g in (-1, size) for g, size in zip(map(int, last), shape, strict=True)):
            return {dim: number for dim, number in enumerate(last) if int(number) != -1}
    return {}


def label_by_sizes(tracer: Tracer, tensor: Tensor) -> None:
    """Label a new ``tensor`` with the channels whose count was given as its size."""
    taken = {dim for part in tracer.parts(tensor) for dim in part.dims}
    labelled = [
        Part.along(dim, number.expression.ids)
        for dim, number in given_sizes(tracer, tensor).items()
        if isinstance(number, TracedInt)
        and isinstance(number.expression, SizeOf)
        and number.size_equations is tracer.trace.size_equations
        and dim not in taken
        and tensor.shape[dim] > 1
    ]
    tracer.set_parts(tensor, [*tracer.parts(tensor), *labelled])
