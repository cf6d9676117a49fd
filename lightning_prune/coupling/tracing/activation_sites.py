"""Records of layers: their input and output channels, where their activations can be observed, and their cost."""

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


def mark_inputs(tracer: Tracer, tensor: Tensor, ids: Ids | None) -> None:
    """Record that the channels ``ids`` of the parameter ``tensor`` are input channels of a layer."""
    tracer.trace.input_dims.update(_own_dims(tracer, tensor, ids))


def _own_dims(tracer: Tracer, tensor: Tensor, ids: Ids | None) -> list[tuple[str, int]]:
    """The (name, dimension) of the parameter ``tensor`` among whose own channel ids ``ids`` begins."""
    name = tracer.name(tensor)
    if name is None or ids is None:
        return []
    labels = tracer.trace.labels[name]
    return [(name, dim) for dim, own in enumerate(labels) if own is not None and own[0] <= ids[0] <= own[-1]]


def mark_outputs(tracer: Tracer, weight: Tensor, out: Tensor, dim: int) -> None:
    """Record that the layer that owns ``weight`` has computed ``out``, with its output channels along ``dim``."""
    label = tracer.labels(out)[dim]
    name = tracer.name(weight)
    if name is not None and label is not None:
        owner = name.rpartition(".")[0]
        tracer.trace.output_dims.update(_own_dims(tracer, weight, label))
        if ".parametrizations." not in f".{name}":  # parametrizations compute another weight
            tracer.trace.activation_sites.setdefault(owner, ActivationSite(owner, label))
            tracer.info(out).producer = owner


def move_site_behind_norm(tracer: Tracer, weight: Tensor | None, source: Tensor, out: Tensor, dim: int) -> None:
    """Observe the layer that computed ``source`` at the output of the norm that directly follows it."""
    producer = tracer.info(source).producer
    if weight is not None and producer is not None and tracer.name(weight) is not None:
        tracer.trace.activation_sites.pop(producer, None)
        mark_outputs(tracer, weight, out, dim)


def record_module_output(tracer: Tracer, name: str, module: nn.Module, output: Any) -> None:
    """Record the output of ``module``, which may differ from the result of the operation on its weight."""
    if not name:
        tracer.proportions.fix(tensors_in(output))
    if is_recurrent(module):
        _set_site(tracer, name, tracer.labels(tensors_in(output)[0])[-1], -1)
    elif has_packed_projection(module):
        _set_site(tracer, name, tracer.labels(module.get_parameter("in_proj_weight"))[0], -1)
    elif isinstance(output, Tensor):
        _record_tensor(tracer, name, module, output)


def _record_tensor(tracer: Tracer, name: str, module: nn.Module, output: Tensor) -> None:
    site, dim = tracer.trace.activation_sites.get(name), channel_dim(module)
    labels = tracer.labels(output)
    if site is not None:
        same = [ids is site.ids or (ids is not None and np.array_equal(ids, site.ids)) for ids in labels]
        dims = [d for d, found in enumerate(same) if found]
        if dims:
            tracer.trace.activation_sites[name] = ActivationSite(name, site.ids, dims[-1] - output.dim())
    elif dim is not None and output.dim() >= -dim and tracer.info(output).producer is None:
        _set_site(tracer, name, labels[dim], dim)  # the weight is computed, as by weight_norm
        tracer.info(output).producer = name


def _set_site(tracer: Tracer, name: str, ids: Ids | None, dim: int) -> None:
    """Make the output of the layer ``name`` the site of the channels ``ids``, in place of any other site in it."""
    tracer.trace.activation_sites.pop(name, None)
    if ids is not None:
        tracer.trace.activation_sites[name] = ActivationSite(name, ids, dim)


def add_macs(tracer: Tracer, constant: int, sizes: Sequence[int], labels: Sequence[Ids | None]) -> None:
    """Add ``constant`` multiply-accumulates for every combination of indices of the dimensions ``sizes``."""
    unlabelled = prod(size for size, label in zip(sizes, labels, strict=True) if label is None)
    tracer.trace.macs.append(MacTerm(constant * unlabelled, tuple(label for label in labels if label is not None)))
