"""The analysis and the dry run allocate no memory for activations."""

from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_prune.budgets import Ratio
from lightning_prune.criteria import Magnitude
from lightning_prune.granularity import Channels
from lightning_prune.network.example_input import Example
from lightning_prune.pruners.channel_pruner import ChannelPruner
from lightning_prune.scope import Scope


class Allocated(TorchDispatchMode):
    """Adds up the memory of every result that has any."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = {_storage(leaf): leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and not leaf.is_meta}
        self.bytes += sum(leaf.untyped_storage().nbytes() for key, leaf in made.items() if key not in given)
        self.operations += 1
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def allocated(size: int) -> Allocated:
    network = torchvision.models.resnet18()
    pruner = ChannelPruner(Channels(), Magnitude(), Ratio(0.5), Scope())
    image = torch.zeros(1, 3, 1, 1).expand(2, 3, size, size)  # its own pixels take none either
    with Allocated() as found:
        pruner.prepare(network, Example.of(image))
    assert len(pruner.groups) > 10
    return found


def test_memory_does_not_grow_with_the_activations() -> None:
    small, large = allocated(32), allocated(4096)
    assert large.operations == small.operations > 100
    assert large.bytes == small.bytes < 1e6  # one activation of the first layer alone would take 2 GB
