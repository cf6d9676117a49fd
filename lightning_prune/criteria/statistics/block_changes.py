"""Cosine similarities between inputs and outputs of blocks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.statistics.activation_averages import LayerCall, LayerValues


class BlockChanges(LayerValues):
    """Sums of one minus the cosine similarity between the first input of a module and its output.

    The input is copied until the module returns, because a block may change it in place.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        self._received: dict[str, Tensor] = {}

    def attach(
        self,
        module: nn.Module,
        groups: Iterable[Group] = (),
        parameters: Collection[str] = (),
        blocks: Iterable[str] = (),
    ) -> None:
        """Observe the modules named ``blocks``, in place of those observed before."""
        self.detach()
        for name in blocks:
            self._handles.append(module.get_submodule(name).register_forward_pre_hook(_Receiver(self, name)))
            self._hook(module, name, -1)

    def receive(self, name: str, inputs: Any) -> None:
        """Copy the first input of the module ``name`` when it is called."""
        if self.active and inputs and isinstance(inputs[0], Tensor):
            self._received[name] = inputs[0].detach().clone()

    def take(self, name: str, dim: int, call: LayerCall) -> None:
        """Add one call of the module ``name``, with the copy of its input."""
        received = self._received.pop(name, None)
        super().take(name, dim, replace(call, args=() if received is None else (received,)))

    def end_step(self) -> None:
        """Stop observing until the next step, and drop inputs of calls that did not return."""
        super().end_step()
        self._received = {}

    def _values(self, call: LayerCall) -> Sequence[Any]:
        if not call.args or not isinstance(call.output, Tensor):
            return []
        return [(1 - F.cosine_similarity(_vectors(call.args[0]), _vectors(call.output), dim=-1)).unsqueeze(-1)]

    def _sum(self, rows: Tensor) -> Tensor:
        return rows.sum()


class _Receiver:
    """Forward pre-hook of an observed block. In copies of the network it has no owner and does nothing."""

    def __init__(self, owner: BlockChanges | None, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if self.owner is not None:
            self.owner.receive(self.name, inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Receiver:
        return _Receiver(None, self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Receiver, (None, self.name)


def _vectors(values: Tensor) -> Tensor:
    """(batch, token, feature) unchanged, other tensors with one vector per example; in float32."""
    values = values.detach().float()
    return values if values.dim() in (1, 3) else values.flatten(1)
