"""Which layers read channels and which make them, where their activations can be seen, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_prune.coupling.symbols.channel_ids import Ids
from lightning_prune.coupling.tracing.trace import ActivationSite, MacTerm
from lightning_prune.coupling.tracing.tracer import Tracer
from lightning_prune.network.layer_outputs import channel_dim, has_packed_projection, is_recurrent
from lightning_prune.network.tensors import tensors_in


def consume(tracer: Tracer, tensor: Tensor, ids: Ids | None) -> None:
    """Note that a layer reads the channels ``ids`` of its parameter ``tensor`` from its input."""
    tracer.trace.consumed.update(_places(tracer, tensor, ids))


def _places(tracer: Tracer, tensor: Tensor, ids: Ids | None) -> list[tuple[str, int]]:
    """The dimensions of the parameter ``tensor`` that channels are its own slots of."""
    name = tracer.name(tensor)
    if name is None or ids is None:
        return []
    labels = tracer.trace.labels[name]
    return [(name, dim) for dim, own in enumerate(labels) if own is not None and own[0] <= ids[0] <= own[-1]]


def produced_by(tracer: Tracer, weight: Tensor, out: Tensor, dim: int) -> None:
    """Note that the layer that owns ``weight`` made ``out``, with its channels along ``dim``."""
    label = tracer.labels(out)[dim]
    name = tracer.name(weight)
    if name is not None and label is not None:
        owner = name.rpartition(".")[0]
        tracer.trace.produced.update(_places(tracer, weight, label))
        if ".parametrizations." not in f".{name}":  # there, another weight is made
            tracer.trace.taps.setdefault(owner, ActivationSite(owner, label))
            tracer.facts(out).producer = owner


def normalized_by(tracer: Tracer, weight: Tensor | None, source: Tensor, out: Tensor, dim: int) -> None:
    """Move the tap of the layer that made ``source`` behind the norm that directly follows it."""
    producer = tracer.facts(source).producer
    if weight is not None and producer is not None and tracer.name(weight) is not None:
        tracer.trace.taps.pop(producer, None)
        produced_by(tracer, weight, out, dim)


def returned(tracer: Tracer, name: str, module: nn.Module, output: Any) -> None:
    """Note what ``module`` has returned: it need not be what the operation on its weight made."""
    if not name:
        tracer.origins.leak(tensors_in(output))
    if is_recurrent(module):
        _show(tracer, name, tracer.labels(tensors_in(output)[0])[-1], -1)
    elif has_packed_projection(module):
        _show(tracer, name, tracer.labels(module.get_parameter("in_proj_weight"))[0], -1)
    elif isinstance(output, Tensor):
        _returned_tensor(tracer, name, module, output)


def _returned_tensor(tracer: Tracer, name: str, module: nn.Module, output: Tensor) -> None:
    tap, dim = tracer.trace.taps.get(name), channel_dim(module)
    labels = tracer.labels(output)
    if tap is not None:
        same = [ids is tap.ids or (ids is not None and np.array_equal(ids, tap.ids)) for ids in labels]
        dims = [d for d, found in enumerate(same) if found]
        if dims:
            tracer.trace.taps[name] = ActivationSite(name, tap.ids, dims[-1] - output.dim())
    elif dim is not None and output.dim() >= -dim and tracer.facts(output).producer is None:
        _show(tracer, name, labels[dim], dim)  # the weight is computed, as by weight_norm
        tracer.facts(output).producer = name


def _show(tracer: Tracer, name: str, ids: Ids | None, dim: int) -> None:
    """Let the layer ``name`` show the channels ``ids`` along ``dim``, and no others that it makes inside."""
    tracer.trace.taps.pop(name, None)
    if ids is not None:
        tracer.trace.taps[name] = ActivationSite(name, ids, dim)


def add_macs(tracer: Tracer, constant: int, sizes: Sequence[int], labels: Sequence[Ids | None]) -> None:
    """Count ``constant`` multiply-accumulates for every combination of indices of dimensions of ``sizes``."""
    unlabelled = prod(size for size, label in zip(sizes, labels, strict=True) if label is None)
    tracer.trace.macs.append(MacTerm(constant * unlabelled, tuple(label for label in labels if label is not None)))
