"""Averages of the outputs and inputs of layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.statistics.attention import projections
from lightning_prune.criteria.statistics.recurrent_layers import sequence_in
from lightning_prune.criteria.statistics.statistics import Statistics
from lightning_prune.network.layer_outputs import has_packed_projection, is_recurrent
from lightning_prune.surgery.plan import Plan, select

COUNT = "examples of "  # prefix of a layer name: number of values in each of its totals


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: its arguments and its output."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class LayerValues(Statistics):
    """Sums over the inputs or outputs of layers in forward passes, and the numbers of values they are sums of."""

    looks_at = "activations"

    def __init__(self, every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._observed: list[str] = []

    def detach(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._observed = [], []

    def unseen(self) -> list[str]:
        """Observed layers that have not been called."""
        return [name for name in self._observed if name not in self.totals]

    def commit(self, loss_scale: float = 1.0) -> None:
        """Count an observed step."""
        self.steps += self.active

    def _hook(self, module: nn.Module, name: str, dim: int) -> None:
        observer = _Observer(self, name, dim)
        self._handles.append(module.get_submodule(name).register_forward_hook(observer, with_kwargs=True))
        self._observed.append(name)

    @torch.no_grad()
    def take(self, name: str, dim: int, call: LayerCall) -> None:
        """Add the values of one call of the layer ``name``.

        Args:
            name: Name of the layer.
            dim: Dimension of the channels in the values, negative.
            call: The call.
        """
        values = self._values(call) if self.active else []
        if not values or any(not isinstance(part, Tensor) or part.dim() < -dim for part in values):
            return
        parts = [part.detach().movedim(dim, 0).flatten(1).float() for part in values]
        count = parts[0].shape[1]  # attention layers may have more keys than queries
        sums = [self._sum(rows) * (count / rows.shape[1]) for rows in parts]
        whole = torch.cat(sums) if len(sums) > 1 else sums[0]
        for key, value in ((name, whole), (COUNT + name, whole.new_full((), count))):
            total = self.totals.get(key)
            self.totals[key] = value if total is None else total.to(value.device) + value

    @abstractmethod
    def _values(self, call: LayerCall) -> Sequence[Any]:
        """The observed tensors; each contains other channels."""

    @abstractmethod
    def _sum(self, rows: Tensor) -> Tensor:
        """A sum for each row: (channels, values) -> (channels,)."""


class _Observer:
    """Forward hook of an observed layer. In copies of the network it has no owner and does nothing."""

    def __init__(self, owner: LayerValues | None, name: str, dim: int) -> None:
        self.owner, self.name, self.dim = owner, name, dim

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self.owner is not None:
            self.owner.take(self.name, self.dim, LayerCall(module, args, kwargs, output))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Observer:
        return _Observer(None, self.name, self.dim)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Observer, (None, self.name, self.dim)


class _OutputStatistics(LayerValues):
    """Sums over the outputs of the layers that make channels."""

    def attach(self, module: nn.Module, groups: Iterable[Group] = (), parameters: Collection[str] = ()) -> None:
        """Hook every layer that makes channels of ``groups``."""
        self.detach()
        where = {activation.module: activation.dim for group in groups for activation in group.activations}
        for name, dim in where.items():
            self._hook(module, name, dim)

    def _values(self, call: LayerCall) -> Sequence[Any]:
        if has_packed_projection(call.layer):
            return projections(call.layer, call.args, call.kwargs)
        return [sequence_in(call.output) if is_recurrent(call.layer) else call.output]


class AbsoluteActivations(_OutputStatistics):
    """Sums of |activation|."""

    def _sum(self, rows: Tensor) -> Tensor:
        return rows.abs().sum(1)


class PositiveActivations(_OutputStatistics):
    """Numbers of positive activations, which a ReLU passes on."""

    def _sum(self, rows: Tensor) -> Tensor:
        return (rows > 0).sum(1).float()


class SquaredInputs(LayerValues):
    """Sums of squared inputs of linear layers and convolutions, for each input channel."""

    def __init__(self, every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        self._grouped: set[str] = set()

    def attach(self, module: nn.Module, groups: Iterable[Group] = (), parameters: Collection[str] = ()) -> None:
        """Hook every layer whose weights are among ``parameters``."""
        self.detach()
        self._grouped = {path for path, layer in module.named_modules() if getattr(layer, "groups", 1) != 1}
        for path, layer in module.named_modules():
            dim = input_dim(layer)
            if dim is not None and (f"{path}.weight" if path else "weight") in parameters:
                self._hook(module, path, dim)

    def follow(self, plan: Plan) -> None:
        """Slice the totals as the layers were sliced; those of grouped convolutions are reset."""
        for path in [key for key in self.totals if not key.startswith(COUNT)]:
            dims = plan.keep.get(f"{path}.weight" if path else "weight", {})
            if dims and path in self._grouped:
                del self.totals[path], self.totals[COUNT + path]
            elif 1 in dims:
                self.totals[path] = select(self.totals[path], {0: dims[1]})

    def _values(self, call: LayerCall) -> Sequence[Any]:
        return call.args[:1]

    def _sum(self, rows: Tensor) -> Tensor:
        return rows.square().sum(1)


def input_dim(layer: nn.Module) -> int | None:
    """Dimension of the channels in the input of a layer, negative; None for layers that are not observed."""
    if isinstance(layer, nn.Linear):
        return -1
    dims = {nn.Conv1d: -2, nn.Conv2d: -3, nn.Conv3d: -4}
    return next((dim for cls, dim in dims.items() if isinstance(layer, cls)), None)
