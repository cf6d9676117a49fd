"""Weights of an earlier point of a training, which follow the network as it shrinks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lightning_prune.network.names import is_inside
from lightning_prune.network.tensors import named_tensors
from lightning_prune.surgery.plan import Plan, select


class StoredWeights:
    """Parameters and buffers of a network as they were, on the CPU.

    Args:
        tensors: Name -> values, in the shapes that the network has now.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    @classmethod
    def of(cls, module: nn.Module) -> StoredWeights:
        """The network as it is."""
        return cls({name: tensor.detach().to("cpu", copy=True) for name, tensor in named_tensors(module)})

    def follow(self, plan: Plan) -> None:
        """Cut what ``plan`` has cut, drop what it has removed, and make up for changed scalars as it did."""
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
        """Let the network have these values."""
        for name, tensor in named_tensors(module):
            if name in self.tensors:
                tensor.copy_(self.tensors[name])


@torch.no_grad()
def reinitialize(module: nn.Module, seed: int) -> list[str]:
    """Draw new weights, as the layers do when they are made; the same ones wherever this is called.

    Args:
        module: The network.
        seed: Of the draws.

    Returns:
        Names of the parameters that stay, because their module has no ``reset_parameters``.
    """
    stay = []
    with torch.random.fork_rng(devices=_devices(module)):
        torch.manual_seed(seed)
        for path, layer in module.named_modules():
            own = [f"{path}.{name}" if path else name for name, _ in layer.named_parameters(recurse=False)]
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
            else:
                stay += own
    return stay


def _devices(module: nn.Module) -> Iterable[torch.device]:
    return {parameter.device for parameter in module.parameters() if parameter.is_cuda}
