"""Copies of the weights from an earlier step of the training, which are pruned along with the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lightning_prune.network.names import is_inside
from lightning_prune.network.tensors import named_tensors
from lightning_prune.surgery.plan import Plan, select


class StoredWeights:
    """Copies of the parameters and buffers of a network, on the CPU.

    Args:
        tensors: Name -> values, in the present shapes of the network.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    @classmethod
    def of(cls, module: nn.Module) -> StoredWeights:
        """Copies of all tensors of ``module``."""
        return cls({name: tensor.detach().to("cpu", copy=True) for name, tensor in named_tensors(module)})

    def follow(self, plan: Plan) -> None:
        """Apply ``plan``: slice tensors, multiply them by its factors, and drop those of removed modules."""
        for name, dims in plan.keep.items():
            if name in self.tensors:
                self.tensors[name] = select(self.tensors[name], dims)
        for name, scales in plan.scales.items():
            for dim, factors in scales.items():
                shape = [-1 if d == dim else 1 for d in range(self.tensors[name].dim())]
                self.tensors[name] = self.tensors[name] * factors.to(self.tensors[name]).view(shape)
        self.tensors = {
            name: tensor for name, tensor in self.tensors.items() if not is_inside(name, plan.removed_modules)
        }

    @torch.no_grad()
    def put_back(self, module: nn.Module) -> None:
        """Copy the values into the network, in place."""
        for name, tensor in named_tensors(module):
            if name in self.tensors:
                tensor.copy_(self.tensors[name])


@torch.no_grad()
def reinitialize(module: nn.Module, seed: int) -> list[str]:
    """Draw new initial weights by ``reset_parameters`` of all layers; the same on every rank.

    Args:
        module: The network.
        seed: Seed of the draws; the global random state is left unchanged.

    Returns:
        Names of the parameters that keep their values, because their module has no ``reset_parameters``.
    """
    kept = []
    with torch.random.fork_rng(devices=_devices(module)):
        torch.manual_seed(seed)
        for path, layer in module.named_modules():
            own = [f"{path}.{name}" if path else name for name, _ in layer.named_parameters(recurse=False)]
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
            else:
                kept += own
    return kept


def _devices(module: nn.Module) -> Iterable[torch.device]:
    return {parameter.device for parameter in module.parameters() if parameter.is_cuda}
