"""Follow the channels of every parameter through one forward pass.

A ``TorchDispatchMode`` sees each ATen operation of the pass and asks the operation's rule (``rules``) how the
labels of its inputs reach its output. A label is an array of slot ids, one per index of a dimension, or None where
the dimension belongs to no parameter (batch, space, tokens).

A reshape may spread channels over several dimensions (heads, groups, the three parts of a query-key-value projection).
Then these dimensions carry a ``Part`` together, for as long as operations only move or take apart such dimensions. The
first one that needs a label for each dimension makes one of them the channels and ties what differs along the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_prune.coupling.symbols.channel_ids import FIXED, Ids, Slots
from lightning_prune.coupling.symbols.proportions import Scalars
from lightning_prune.coupling.symbols.sizes import SizeEquations
from lightning_prune.network.tensors import named_modules, named_tensors

Labels = list["Ids | None"]

KERNEL = "kernel position"  # the one reason that goes without saying
ENTRIES = "embedding entries are looked up by number"
UNUSED = "the forward pass never uses it"
_SCRIPTED = "is a TorchScript module, whose shapes cannot change: prune the Python module, then script it"


@dataclass(frozen=True)
class ActivationSite:
    """Where the activations of some channels can be seen: the output of ``module``, along ``dim`` from the end.

    ``dim`` is None until the module has returned a tensor that carries exactly these channels.
    """

    module: str
    ids: Ids
    dim: int | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """Channels along one or several dimensions of a tensor.

    Attributes:
        dims: The dimensions, ascending.
        ids: Slot ids, one axis for each of them.
        channel: The one of ``dims`` that is taken for the channels: the last of those that a reshape made.
        split: Number of the reshape that made several dimensions out of one, None where there was none.
    """

    dims: tuple[int, ...]
    ids: Ids
    channel: int
    split: int | None = None

    @classmethod
    def along(cls, dim: int, ids: Ids) -> Part:
        """A label along one dimension."""
        return cls((dim,), ids, dim)

    def rows(self) -> Ids:
        """Ids as (what differs along the other dimensions, channels)."""
        if len(self.dims) == 1:
            return self.ids[None]
        moved = np.moveaxis(self.ids, self.dims.index(self.channel), -1)
        return moved.reshape(-1, moved.shape[-1])

    def moved(self, to: Callable[[int], int]) -> Part:
        """The part with its dimensions at other places."""
        dims = [to(dim) for dim in self.dims]
        return Part(tuple(sorted(dims)), self.ids.transpose(np.argsort(dims)), to(self.channel), self.split)

    def narrowed(self, ids: Ids) -> Part | None:
        """The part with other ids, without the dimensions in which they have size 1; None where nothing is left."""
        wide = [n for n, size in enumerate(ids.shape) if size > 1]
        if not wide:
            return None
        dims = tuple(self.dims[n] for n in wide)
        channel = self.channel if self.channel in dims else dims[-1]
        return Part(dims, ids.reshape([ids.shape[n] for n in wide]), channel, self.split)


@dataclass(frozen=True)
class MacTerm:
    """``constant`` multiply-accumulates for every combination of the indices of ``dims``."""

    constant: float
    dims: tuple[Ids, ...]


@dataclass
class Trace:
    """What one or several passes have said about a network."""

    slots: Slots = field(default_factory=Slots)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Labels] = field(default_factory=dict)
    lists: frozenset[str] = frozenset()
    reached: set[str] = field(default_factory=set)
    consumed: set[tuple[str, int]] = field(default_factory=set)
    produced: set[tuple[str, int]] = field(default_factory=set)
    taps: dict[str, ActivationSite] = field(default_factory=dict)
    macs: list[MacTerm] = field(default_factory=list)
    operations: list[Any] = field(default_factory=list)
    sizes: list[tuple[str, bool, tuple[int, ...], Labels]] = field(default_factory=list)
    balances: list[tuple[list[Ids], str]] = field(default_factory=list)
    pieces: dict[bytes, Ids] = field(default_factory=dict)
    book: SizeEquations = field(default_factory=SizeEquations)
    scalars: Scalars = field(default_factory=Scalars)
    splits: list[Ids] = field(default_factory=list)
    attended: list[Ids] = field(default_factory=list)
    heads: frozenset[int] = frozenset()

    def split(self, ids: Ids) -> int:
        """The number of a reshape that may have made heads of the channels ``ids``."""
        self.splits.append(ids.ravel())
        return len(self.splits) - 1

    def attention_splits(self) -> frozenset[int]:
        """Numbers of the reshapes that made heads: their channels met in a product of two activations."""
        if not self.attended:
            return frozenset()
        met = np.unique(np.concatenate(self.attended))
        return frozenset(number for number, ids in enumerate(self.splits) if np.isin(ids, met).any())

    def register(self, module: nn.Module) -> None:
        """Give fresh slots to every dimension of every parameter and buffer of ``module``."""
        self.tensors = dict(named_tensors(module))
        lists = (nn.ModuleList, nn.ModuleDict)
        self.lists = frozenset(path for path, below in named_modules(module) if isinstance(below, lists))
        kernels = {
            id(tensor)
            for _, layer in named_modules(module)
            if isinstance(layer, _ConvNd)
            for tensor in layer.parameters()
            if tensor.dim() > 2
        }
        for name, tensor in self.tensors.items():
            channels = 2 if id(tensor) in kernels else tensor.dim()
            sizes = enumerate(tensor.shape)
            self.labels[name] = [self.slots.new(size) if size > 1 and dim < channels else None for dim, size in sizes]
        self._freeze_scripted(module)

    def _freeze_scripted(self, module: nn.Module) -> None:
        """Keep the channels of TorchScript modules, whose shapes and code cannot be changed."""
        scripted = [path for path, below in named_modules(module) if isinstance(below, torch.jit.ScriptModule)]
        for name, labels in self.labels.items() if scripted else ():
            path = next((path for path in scripted if name.startswith(f"{path}.")), None)
            for label in labels if path is not None else ():
                if label is not None:
                    self.slots.freeze(label, f"{path!r} {_SCRIPTED}")


def concatenate(labels: Sequence[Ids | None], sizes: Sequence[int]) -> Ids | None:
    """Labels side by side, with ``FIXED`` where a part carries none; None where no part carries any."""
    if all(label is None for label in labels):
        return None
    parts = [np.full(size, FIXED) if label is None else label for label, size in zip(labels, sizes, strict=True)]
    return np.concatenate(parts)
