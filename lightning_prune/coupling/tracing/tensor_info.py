"""The information that one traced pass keeps for each of its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_prune.coupling.symbols.channel_ids import Ids
from lightning_prune.coupling.symbols.proportions import Factors
from lightning_prune.coupling.tracing.trace import Part

_KEY = "_lightning_prune_tensor_info"  # set on the tensors of a pass


class TensorInfo:
    """What one traced pass has recorded about one tensor.

    Attributes:
        traced_pass: The token of the pass that recorded it.
        parts: The channels that the tensor carries.
        name: Its qualified name, if it is a parameter or buffer (or one in another layout).
        producer: Qualified name of the module whose layer computed it.
        factors: What it is proportional to.
        summed: Channels that were summed over since the last layer.
        positions: Channels of which it holds positions, and the operation that found these positions.
    """

    __slots__ = ("factors", "name", "parts", "positions", "producer", "summed", "traced_pass")

    def __init__(self, traced_pass: object) -> None:
        self.traced_pass = traced_pass
        self.parts: Sequence[Part] = ()
        self.name: str | None = None
        self.producer: str | None = None
        self.factors: Factors | None = None
        self.summed: Sequence[Ids] = ()
        self.positions: tuple[Ids, str] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None  # a copy of a tensor is another tensor


class TensorTable:
    """The ``TensorInfo`` of every tensor in one pass.

    Each entry is stored on its tensor and lives as long as the tensor does. Entries of other passes are ignored.
    """

    def __init__(self) -> None:
        self._traced_pass = object()

    def find(self, tensor: Tensor) -> TensorInfo | None:
        """The entry of ``tensor``, None where this pass has recorded nothing about it."""
        found: TensorInfo | None = tensor.__dict__.get(_KEY)
        return found if found is not None and found.traced_pass is self._traced_pass else None

    def info(self, tensor: Tensor) -> TensorInfo:
        """The entry of ``tensor``, which is created where there is none."""
        found = tensor.__dict__.get(_KEY)
        if found is None or found.traced_pass is not self._traced_pass:
            found = tensor.__dict__[_KEY] = TensorInfo(self._traced_pass)
        return found  # type: ignore[no-any-return]

    def parts(self, tensor: Tensor) -> Sequence[Part]:
        """The channels that ``tensor`` carries."""
        found = tensor.__dict__.get(_KEY)
        return found.parts if found is not None and found.traced_pass is self._traced_pass else ()

    def name(self, tensor: Tensor) -> str | None:
        """The qualified name of a parameter or buffer, also of its casts and transposes."""
        return self.info(tensor).name


@dataclass(frozen=True)
class Constant:
    """A tensor that was filled with one value.

    Attributes:
        tensor: The tensor, kept alive so that no other tensor gets its storage.
        version: Its version counter when it was filled.
        zero: Whether the value is 0.
        sizes: Dimension -> the integer that the code gave for its size.
    """

    tensor: Tensor
    version: int
    zero: bool
    sizes: Mapping[int, int]
