"""Sharded tensors, of which every rank holds a part (DTensor of FSDP2 and tensor parallelism)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def reshard(module: nn.Module) -> None:
    """Free the full parameters that FSDP2 keeps after a forward pass, so that every rank holds only its shard."""
    for below in module.modules():
        reshard_module = getattr(below, "reshard", None)
        if callable(reshard_module):
            reshard_module()


def is_sharded(module: nn.Module) -> bool:
    """Whether a parameter of ``module`` is sharded over ranks."""
    reshard(module)
    return any(_is_dtensor(parameter) for parameter in module.parameters())


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor; for a sharded tensor this is a collective operation that every rank must call."""
    return tensor.full_tensor() if _is_dtensor(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


@torch.no_grad()
def local_tensor(tensor: Tensor) -> Tensor:
    """The shard of a tensor that this rank holds, without a copy."""
    return tensor.to_local() if _is_dtensor(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


def shard_like(values: Tensor, tensor: Tensor) -> Tensor:
    """The part of ``values`` that corresponds to this rank's shard of ``tensor``, on its device."""
    if not _is_dtensor(tensor):
        return values.to(tensor.device)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    return distribute_tensor(values.to(mesh.device_type), mesh, placements).to_local()


class FullTensors(Mapping[str, Tensor]):
    """Mapping of names to full tensors, each gathered from its shards when it is accessed."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        full = full_tensor(tensor)
        return nn.Parameter(full, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else full

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
