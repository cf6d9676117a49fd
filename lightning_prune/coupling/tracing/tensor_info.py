"""What a tracer knows about one tensor of a pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_prune.coupling.symbols.channel_ids import Ids
from lightning_prune.coupling.symbols.proportions import Factors
from lightning_prune.coupling.tracing.trace import Part

if TYPE_CHECKING:
    from lightning_prune.coupling.tracing.tracer import Tracer


class TensorInfo:
    """What ``tracer`` knows about one tensor.

    Attributes:
        parts: The channels it carries.
        name: Its name, if it is a parameter or buffer (or one in another layout).
        producer: The module whose layer made it.
        factors: What it is proportional to.
        summed: Channels that were summed over since the last layer.
        positions: Channels among which it holds positions, and the operation that found these.
    """

    __slots__ = ("factors", "name", "parts", "positions", "producer", "summed", "tracer")

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.parts: Sequence[Part] = ()
        self.name: str | None = None
        self.producer: str | None = None
        self.factors: Factors | None = None
        self.summed: Sequence[Ids] = ()
        self.positions: tuple[Ids, str] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None  # a copy of a tensor is another tensor


@dataclass(frozen=True)
class Constant:
    """A tensor that was made of one value.

    Attributes:
        tensor: The tensor, kept alive so that its storage is not taken by another.
        version: Its version then.
        zero: Whether the value is 0.
        numbers: Dimension -> the number that was written for it.
    """

    tensor: Tensor
    version: int
    zero: bool
    numbers: Mapping[int, int]
