"""The record of the forward passes that the analysis has traced.

A ``TorchDispatchMode`` (``tracer``) sees each ATen operation of a pass and calls the operation's rule (``rules``). The
rule derives the labels of the output from the labels of the inputs. A label is an array of channel ids, one for each
index of a dimension, or None where the dimension belongs to no parameter (batch, space, tokens).

A reshape may spread channels over several dimensions (heads, groups, the three parts of a query-key-value projection).
Then these dimensions carry a ``Part`` together, as long as operations only move or split such dimensions. The first
operation that needs one label for each dimension chooses one of them as the channel dimension and ties the ids that
differ along the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_prune.coupling.symbols.channel_ids import NO_CHANNEL, ChannelIds, Ids
from lightning_prune.coupling.symbols.proportions import Scalars
from lightning_prune.coupling.symbols.traced_ints import SizeEquations
from lightning_prune.network.tensors import named_modules, named_tensors

Labels = list["Ids | None"]

KERNEL = "kernel position"  # the one reason that no report lists
ENTRIES = "embedding entries are looked up by number"
UNUSED = "the forward pass never uses it"
_SCRIPTED = "is a TorchScript module, whose shapes cannot change: prune the Python module, then script it"


@dataclass(frozen=True)
class ActivationSite:
    """The output of a module in which the activations of some channels can be observed.

    Attributes:
        module: Qualified name of the module.
        ids: The channels.
        dim: The channel dimension of the output, counted from the end (negative); None until the module has returned a
            tensor that carries exactly these channels.
    """

    module: str
    ids: Ids
    dim: int | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """Channels along one or several dimensions of a tensor.

    Attributes:
        dims: The dimensions, ascending.
        ids: Channel ids, one axis for each of these dimensions.
        channel: The one of ``dims`` that is the channel dimension: by default the last of those that a reshape made.
        split: Number of the reshape that spread one dimension over several, None where there was none.
    """

    dims: tuple[int, ...]
    ids: Ids
    channel: int
    split: int | None = None

    @classmethod
    def along(cls, dim: int, ids: Ids) -> Part:
        """The part that carries the label ``ids`` along one dimension."""
        return cls((dim,), ids, dim)

    def rows(self) -> Ids:
        """The ids as a matrix (positions in the other dimensions, channels)."""
        if len(self.dims) == 1:
            return self.ids[None]
        moved = np.moveaxis(self.ids, self.dims.index(self.channel), -1)
        return moved.reshape(-1, moved.shape[-1])

    def moved(self, to: Callable[[int], int]) -> Part:
        """The part with every dimension ``d`` moved to ``to(d)``."""
        dims = [to(dim) for dim in self.dims]
        return Part(tuple(sorted(dims)), self.ids.transpose(np.argsort(dims)), to(self.channel), self.split)

    def narrowed(self, ids: Ids) -> Part | None:
        """The part with the ids ``ids``, without their dimensions of size 1; None where all have size 1."""
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
    """Everything that the traced passes of a network have recorded.

    Attributes:
        channel_ids: The channel ids of all tensors and the ties between them.
        tensors: Parameters and buffers by name.
        labels: Their labels, one for each dimension.
        module_lists: Names of the ``ModuleList`` and ``ModuleDict`` modules.
        reached: Names of the tensors that a pass uses.
        input_dims: (tensor, dimension) of the parameters along which a layer reads its input channels.
        output_dims: (tensor, dimension) of the parameters along which a layer has its output channels.
        activation_sites: Where activations can be observed, by the name of the module.
        macs: Multiply-accumulates of every layer and product.
        operations: The ATen overloads that ran.
        shapes: (module, whether it was cut out, shape, labels) of the results of reshapes, slices and splits.
        balances: Rows of channels that must lose equally many, and the module that requires it.
        pieces: Channels that the code cuts out by a size of its own, which form groups of their own.
        size_equations: Equations between the integers of the code.
        scalars: Scalars and constants.
        splits: The channels of every reshape that spread them over several dimensions, by its number.
        attended: Channels that met in a product of two activations, as in attention.
        heads: Numbers of the reshapes whose heads are the units, instead of the dimensions in every head.
    """

    channel_ids: ChannelIds = field(default_factory=ChannelIds)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Labels] = field(default_factory=dict)
    module_lists: frozenset[str] = frozenset()
    reached: set[str] = field(default_factory=set)
    input_dims: set[tuple[str, int]] = field(default_factory=set)
    output_dims: set[tuple[str, int]] = field(default_factory=set)
    activation_sites: dict[str, ActivationSite] = field(default_factory=dict)
    macs: list[MacTerm] = field(default_factory=list)
    operations: list[Any] = field(default_factory=list)
    shapes: list[tuple[str, bool, tuple[int, ...], Labels]] = field(default_factory=list)
    balances: list[tuple[list[Ids], str]] = field(default_factory=list)
    pieces: dict[bytes, Ids] = field(default_factory=dict)
    size_equations: SizeEquations = field(default_factory=SizeEquations)
    scalars: Scalars = field(default_factory=Scalars)
    splits: list[Ids] = field(default_factory=list)
    attended: list[Ids] = field(default_factory=list)
    heads: frozenset[int] = frozenset()

    def add_split(self, ids: Ids) -> int:
        """Number a reshape that may have made heads of the channels ``ids``, and return its number."""
        self.splits.append(ids.ravel())
        return len(self.splits) - 1

    def attention_splits(self) -> frozenset[int]:
        """Numbers of the reshapes that made attention heads: their channels met in a product of two activations."""
        if not self.attended:
            return frozenset()
        met = np.unique(np.concatenate(self.attended))
        return frozenset(number for number, ids in enumerate(self.splits) if np.isin(ids, met).any())

    def register(self, module: nn.Module) -> None:
        """Label every dimension of every parameter and buffer of ``module`` with new channel ids."""
        self.tensors = dict(named_tensors(module))
        lists = (nn.ModuleList, nn.ModuleDict)
        self.module_lists = frozenset(path for path, below in named_modules(module) if isinstance(below, lists))
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
            self.labels[name] = [
                self.channel_ids.new(size) if size > 1 and dim < channels else None for dim, size in sizes
            ]
        self._freeze_scripted(module)

    def _freeze_scripted(self, module: nn.Module) -> None:
        """Freeze the channels of TorchScript modules, whose shapes and code cannot be changed."""
        scripted = [path for path, below in named_modules(module) if isinstance(below, torch.jit.ScriptModule)]
        for name, labels in self.labels.items() if scripted else ():
            path = next((path for path in scripted if name.startswith(f"{path}.")), None)
            for label in labels if path is not None else ():
                if label is not None:
                    self.channel_ids.freeze(label, f"{path!r} {_SCRIPTED}")


def concatenate(labels: Sequence[Ids | None], sizes: Sequence[int]) -> Ids | None:
    """Concatenated labels, with ``NO_CHANNEL`` for the entries without a label; None where none has a label."""
    if all(label is None for label in labels):
        return None
    parts = [np.full(size, NO_CHANNEL) if label is None else label for label, size in zip(labels, sizes, strict=True)]
    return np.concatenate(parts)
