"""Follow the channels of every parameter through one forward pass.

A ``TorchDispatchMode`` sees each ATen operation of the pass and asks the operation's rule (``rules.py``) how the
labels of its inputs reach its output. A label is an array of slot ids, one per index of a dimension, or None where
the dimension belongs to no parameter (batch, space, tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass
from math import prod
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_prune.coupling.slots import FIXED, Ids, Slots

Labels = list["Ids | None"]

KERNEL = "kernel position"  # the one reason that goes without saying
UNUSED = "the forward pass never uses it"


@dataclass(frozen=True)
class Tap:
    """Where the activations of some channels can be seen: the output of ``module``, along ``dim`` from the end.

    ``dim`` is None until the module has returned a tensor that carries exactly these channels.
    """

    module: str
    ids: Ids
    dim: int | None = None


@dataclass(frozen=True)
class MacTerm:
    """``constant`` multiply-accumulates for every combination of the indices of ``dims``."""

    constant: float
    dims: tuple[Ids, ...]


@dataclass
class Trace:
    """What one or several passes have said about a network."""

    slots: Slots = field(default_factory=Slots)
    labels: dict[str, Labels] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)
    consumed: set[tuple[str, int]] = field(default_factory=set)
    taps: dict[str, Tap] = field(default_factory=dict)
    macs: list[MacTerm] = field(default_factory=list)
    reshapes: list[tuple[tuple[int, ...], Labels]] = field(default_factory=list)

    def register(self, module: nn.Module) -> None:
        """Give fresh slots to every dimension of every parameter and buffer of ``module``."""
        for name, tensor in named_tensors(module):
            self.labels[name] = [self.slots.new(size) if size > 1 else None for size in tensor.shape]


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then buffers, each tensor once under its first name.

    Raises:
        ValueError: If one of them is lazy.
    """
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{name!r} is lazy and has no shape yet; run one batch through the network first")
        yield name, tensor


class Tracer(TorchDispatchMode):
    """Label the activations of the forward passes that run inside it."""

    def __init__(self, trace: Trace, module: nn.Module, rule_of: Callable[[Any], Any]) -> None:
        super().__init__()
        self.trace = trace
        self.slots = trace.slots
        self._rule_of = rule_of
        self._labels = WeakTensorKeyDictionary()
        self._names = WeakTensorKeyDictionary()
        self._producers = WeakTensorKeyDictionary()
        for name, tensor in named_tensors(module):
            self._labels[tensor] = trace.labels[name]
            self._names[tensor] = name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, then let its rule label the result."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = list(tensors_in([args, kwargs]))
        for tensor in tensors:
            if tensor in self._names:
                self.trace.reached.add(self._names[tensor])
        rule = self._rule_of(func)
        if rule is not None:
            rule(self, func, args, kwargs, out)
        else:
            for tensor in tensors:
                self.freeze(tensor, f"no rule for {func} yet")
        return out

    def labels(self, tensor: Tensor) -> Labels:
        """One label or None for each dimension of ``tensor``."""
        found: Labels | None = self._labels.get(tensor)
        return list(found) if found is not None else [None] * tensor.dim()

    def set_labels(self, tensor: Tensor, labels: Sequence[Ids | None]) -> None:
        """Say which channels each dimension of ``tensor`` carries; what does not fit its shape is frozen."""
        for label, size in zip(labels, tensor.shape, strict=True):
            if label is not None and len(label) != size > 1:
                self.slots.freeze(label, "its way through the network could not be followed")
        self._labels[tensor] = [
            label if label is not None and len(label) == size > 1 else None
            for label, size in zip(labels, tensor.shape, strict=True)
        ]

    def tie(self, a: Ids | None, b: Ids | None, reason: str = "meets a tensor whose size is fixed") -> None:
        """Tie two labels index by index; where one side is no channel, the other side has to stay."""
        if a is None and b is None:
            return
        if a is None or b is None:
            self.slots.freeze(b if a is None else a, reason)  # type: ignore[arg-type]
            return
        self.slots.tie(a, b, reason)

    def freeze(self, tensor: Tensor, reason: str, dims: Sequence[int] | None = None) -> None:
        """Keep every channel that ``tensor`` carries along ``dims`` (all of them by default)."""
        for dim, label in enumerate(self.labels(tensor)):
            if label is not None and (dims is None or dim in dims):
                self.slots.freeze(label, reason)

    def name(self, tensor: Tensor) -> str | None:
        """The qualified name of a parameter or buffer, also behind a cast or transpose of it."""
        name: str | None = self._names.get(tensor)
        return name

    def same_parameter(self, source: Tensor, out: Tensor) -> None:
        """Say that ``out`` is ``source`` in another layout: its name and its producer stay known."""
        if source in self._names:
            self._names[out] = self._names[source]
        if source in self._producers:
            self._producers[out] = self._producers[source]

    def consume(self, tensor: Tensor, ids: Ids | None) -> None:
        """Note that a layer reads the channels ``ids`` of its parameter ``tensor`` from its input."""
        name = self.name(tensor)
        if name is None or ids is None:
            return
        for dim, label in enumerate(self.trace.labels[name]):
            if label is not None and label.size and label[0] == ids[0]:
                self.trace.consumed.add((name, dim))

    def produced_by(self, weight: Tensor, out: Tensor, dim: int) -> None:
        """Note that the layer that owns ``weight`` made ``out``, with its channels along ``dim``."""
        label = self.labels(out)[dim]
        name = self.name(weight)
        if name is not None and label is not None:
            owner = name.rpartition(".")[0]
            self.trace.taps.setdefault(owner, Tap(owner, label))
            self._producers[out] = owner

    def normalised_by(self, weight: Tensor | None, source: Tensor, out: Tensor, dim: int) -> None:
        """Move the tap of the layer that made ``source`` behind the norm that directly follows it."""
        producer = self._producers.get(source)
        if weight is not None and producer is not None and self.name(weight) is not None:
            self.trace.taps.pop(producer, None)
            self.produced_by(weight, out, dim)

    def returned(self, module: str, output: Any) -> None:
        """Note what ``module`` has returned: it need not be what the operation on its weight made."""
        tap = self.trace.taps.get(module)
        if tap is None or not isinstance(output, Tensor):
            return
        dims = [
            d for d, label in enumerate(self.labels(output)) if label is not None and np.array_equal(label, tap.ids)
        ]
        if dims:
            self.trace.taps[module] = Tap(module, tap.ids, dims[-1] - output.dim())

    def add_macs(self, constant: int, sizes: Sequence[int], labels: Sequence[Ids | None]) -> None:
        """Count ``constant`` multiply-accumulates for every combination of indices of dimensions of ``sizes``."""
        unlabelled = prod(size for size, label in zip(sizes, labels, strict=True) if label is None)
        self.trace.macs.append(MacTerm(constant * unlabelled, tuple(label for label in labels if label is not None)))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor inside nested containers and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for item in vars(value).values():
            yield from tensors_in(item)


def concatenate(labels: Sequence[Ids | None], sizes: Sequence[int]) -> Ids | None:
    """Labels side by side, with ``FIXED`` where a part carries none; None where no part carries any."""
    if all(label is None for label in labels):
        return None
    parts = [np.full(size, FIXED) if label is None else label for label, size in zip(labels, sizes, strict=True)]
    return np.concatenate(parts)
