"""Sums of activation times gradient for each channel."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.statistics.attention import products, projections, sources
from lightning_prune.criteria.statistics.recurrent_layers import PerExample, parts_of
from lightning_prune.criteria.statistics.statistics import Statistics, all_finite
from lightning_prune.network.layer_outputs import has_packed_projection, is_recurrent

Key = TypeVar("Key")


class ActivationGradient(Statistics):
    """|mean over positions of activation × gradient|, summed over examples, for each channel of the observed layers.

    Molchanov et al. 2016, 'Pruning convolutional neural networks for resource efficient inference', eq. 8. A forward
    hook copies the activation, because operations such as ``relu_`` overwrite it; a hook on its gradient uses the copy
    in the backward pass. Of a recurrent layer, all returned tensors are observed, including the last states, with time
    steps as positions; states inside the layer are not observed.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        self.pending: dict[str, Tensor] = {}
        self.parts: dict[tuple[str, int], Tensor] = {}  # sums of one call of a recurrent layer: (examples, channels)
        self.calls = 0
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._observed: list[str] = []

    def attach(self, module: nn.Module, groups: Iterable[Group] = (), parameters: Collection[str] = ()) -> None:
        """Hook every layer that makes channels of ``groups``."""
        self.detach()
        where = {a.module: a.dim for group in groups for a in group.activations}
        for name, dim in where.items():
            self._handles.append(
                module.get_submodule(name).register_forward_hook(_Observer(self, name, dim), with_kwargs=True)
            )
        self._observed = [name for name in where if not has_packed_projection(module.get_submodule(name))]

    def detach(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._observed = [], []

    def begin_step(self, step: int) -> None:
        """Drop sums that were not committed, and decide whether to observe this batch."""
        super().begin_step(step)
        self._drop()

    def before_backward(self, loss: Tensor, loss_scale: float = 1.0) -> None:
        """Drop sums from derivatives that other statistics computed before the backward pass of the training begins."""
        if self.active and loss.requires_grad:
            loss.register_hook(lambda gradient: self._drop())

    def _drop(self) -> None:
        self.pending, self.parts = {}, {}

    def commit(self, loss_scale: float = 1.0) -> None:
        """Add the sums of one backward pass, divided by the loss scale."""
        pending, parts = self.pending, self.parts
        self._drop()
        for (name, _), value in parts.items():
            _add(pending, name, value.abs().sum(0))
        if not self.active or not all_finite(pending.values()):
            return
        for name, value in pending.items():
            total = self.totals.get(name)
            self.totals[name] = value / loss_scale if total is None else total.to(value.device) + value / loss_scale
        self.steps += 1

    def unseen(self) -> list[str]:
        """Observed layers without a gradient, except for attention layers, which have none where frozen or compiled."""
        return [name for name in self._observed if name not in self.totals]


class _Observer:
    """Forward hook of an observed layer. In copies of the network it has no owner and does nothing."""

    def __init__(self, owner: ActivationGradient | None, name: str, dim: int) -> None:
        self.owner, self.name, self.dim = owner, name, dim

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        owner = self.owner
        if owner is None or not owner.active or not torch.is_grad_enabled():
            return
        if is_recurrent(module):
            self._sequences(owner, parts_of(module, output))
        elif has_packed_projection(module):
            self._projections(owner, module, args, kwargs, output[0])
        elif isinstance(output, Tensor) and output.requires_grad and output.dim() >= -self.dim:
            activation = output.detach().clone()

            def consume(gradient: Tensor) -> None:
                _add(owner.pending, self.name, channel_sums(_product(activation, gradient), self.dim))

            output.register_hook(consume)

    def _sequences(self, owner: ActivationGradient, parts: list[tuple[Tensor, PerExample]]) -> None:
        """Observe a recurrent layer; the absolute value is taken of the sum over all parts, in ``commit``."""
        owner.calls += 1
        key = self.name, owner.calls

        def consume(gradient: Tensor, activation: Tensor, per_example: PerExample) -> None:
            _add(owner.parts, key, per_example(_product(activation, gradient)))

        for tensor, per_example in parts:
            if tensor.requires_grad:
                tensor.register_hook(partial(consume, activation=tensor.detach().clone(), per_example=per_example))

    def _projections(self, owner: ActivationGradient, layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        """Observe queries, keys and values, in the order of their rows; one product may compute several."""
        projected = projections(layer, args, kwargs)
        width = projected[0].shape[-1]

        def consume(gradients: tuple[Tensor | None, ...], first: int) -> None:
            gradient = gradients[0]
            if gradient is None:
                return
            value = gradient.new_zeros(3 * width, dtype=torch.float32)
            for part, one in enumerate(gradient.split(width, -1), first):
                product = _product(projected[part], one.reshape(projected[part].shape))
                value[part * width : (part + 1) * width] = product.mean(0).abs().sum(0)
            _add(owner.pending, self.name, value)

        weight = layer.get_parameter("in_proj_weight")
        for node, first in products(output, sources(args, kwargs), weight):
            node.register_prehook(partial(consume, first=first))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Observer:
        return _Observer(None, self.name, self.dim)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Observer, (None, self.name, self.dim)


def _add(sums: dict[Key, Tensor], key: Key, value: Tensor) -> None:
    sums[key] = sums[key] + value if key in sums else value


def _product(activation: Tensor, gradient: Tensor) -> Tensor:
    """Activation × gradient in float32; in place where possible, which takes half of the time and no memory."""
    values = activation.float()
    if values is activation and _graph_is_kept():
        values = activation.clone()  # another backward pass may use it
    return values.mul_(gradient.detach())


def _graph_is_kept() -> bool:
    """Whether the running backward pass retains the graph."""
    kept: bool = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)()
    return kept


def channel_sums(product: Tensor, dim: int) -> Tensor:
    """Sum over examples of |mean over positions|: (N, ..., C, ...) -> (C,), with C at ``dim`` (negative).

    Example:
        >>> channel_sums(torch.tensor([[[1.0, -3.0]], [[4.0, 0.0]]]), -2)  # two examples, one channel, two positions
        tensor([3.])
    """
    batched = product.dim() > -dim
    rows = product.movedim(dim, 1 if batched else 0)
    if not batched:
        rows = rows.unsqueeze(0)
    return rows.flatten(2).mean(2).abs().sum(0) if rows.dim() > 2 else rows.abs().sum(0)
