"""Tensors of which every rank holds a part (DTensor, as FSDP2 and tensor parallelism make them)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def reshard(module: nn.Module) -> None:
    """Throw away the whole parameters that FSDP2 leaves behind a forward pass, and take the parts again."""
    for below in module.modules():
        put_back = getattr(below, "reshard", None)
        if callable(put_back):
            put_back()


def is_sharded(module: nn.Module) -> bool:
    """Whether ranks hold parts of a parameter of ``module``."""
    reshard(module)
    return any(_is_dtensor(parameter) for parameter in module.parameters())


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor; of a sharded one every rank has to ask for it."""
    return tensor.full_tensor() if _is_dtensor(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


@torch.no_grad()
def local_tensor(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in the same memory."""
    return tensor.to_local() if _is_dtensor(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


def shard_like(values: Tensor, tensor: Tensor) -> Tensor:
    """The part of ``values`` that belongs to what this rank holds of ``tensor``, on its device."""
    if not _is_dtensor(tensor):
        return values.to(tensor.device)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    return distribute_tensor(values.to(mesh.device_type), mesh, placements).to_local()


class FullTensors(Mapping[str, Tensor]):
    """Tensors by name, each put together when it is asked for."""

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
