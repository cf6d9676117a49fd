"""What blocks make of what they receive."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.coupling import Group
from lightning_prune.statistics.activations import LayerValues


class BlockChanges(LayerValues):
    """Sums of one minus the cosine similarity between what modules receive and what they return."""

    def attach(
        self,
        module: nn.Module,
        groups: Iterable[Group] = (),
        parameters: Collection[str] = (),
        blocks: Iterable[str] = (),
    ) -> None:
        """Begin to observe the modules called ``blocks``; attaching again replaces that."""
        self.detach()
        for name in blocks:
            self._hook(module, name, -1)

    def _values(self, inputs: Any, output: Any) -> Any:
        if not self.active or len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            return None
        return (1 - F.cosine_similarity(_vectors(inputs[0]), _vectors(output), dim=-1)).unsqueeze(-1)

    def _sum(self, rows: Tensor) -> Tensor:
        return rows.sum()


def _vectors(values: Tensor) -> Tensor:
    """(batch, token, feature) as it is, everything else with a vector for each example; in float32."""
    values = values.detach().float()
    return values if values.dim() in (1, 3) else values.flatten(1)
