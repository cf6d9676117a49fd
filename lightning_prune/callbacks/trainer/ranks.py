"""One result on all ranks: statistics reduced over them, and checksums that compare their networks."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, distributed, nn

from lightning_prune.network.sharded import is_sharded
from lightning_prune.surgery.plan import Plan


def over_ranks(trainer: pl.Trainer, totals: Mapping[str, Tensor], how: Literal["sum", "mean"]) -> dict[str, Tensor]:
    """``totals`` over all ranks, which all have to take part; a name that only some of them have is 0 on the others."""
    device = trainer.strategy.root_device
    shapes = {name: tuple(total.shape) for name, total in totals.items()}
    everywhere = {name: shape for own in gathered(trainer, shapes) for name, shape in own.items()}
    reduced: dict[str, Tensor] = {}
    for name in sorted(everywhere):
        own = totals[name].to(device, copy=True) if name in totals else torch.zeros(everywhere[name], device=device)
        reduced[name] = trainer.strategy.reduce(own, reduce_op=how)  # type: ignore[assignment]  # works in place
    return reduced


def gathered(trainer: pl.Trainer, value: Any) -> list[Any]:
    """``value`` of every rank."""
    values: list[Any] = [value] * trainer.world_size
    if trainer.world_size > 1:
        distributed.all_gather_object(values, value)
    return values


def check_ranks_agree(trainer: pl.Trainer, network: nn.Module, plan: Plan) -> None:
    """Plan and parameters must be the same on all ranks, or from here on each would train a network of its own.

    So must what the plan says of attributes. Buffers may differ: DDP hands out those of rank 0 at the next forward
    pass. So do parameters that are sharded.

    Raises:
        RuntimeError: On every rank; names the plan, or the first parameter or attribute that differs.
    """
    if trainer.world_size == 1 or is_sharded(network):
        return
    without = getattr(network, "_ddp_params_and_buffers_to_ignore", ())
    first, *others = gathered(trainer, {**plan_checksums(plan, network), **fingerprints(network, without)})
    for rank, own in enumerate(others, start=1):
        name = next((name for name in first if own.get(name) != first[name]), None)
        if name is not None:
            raise RuntimeError(
                f"{name!r} is not the same on rank {rank} as on rank 0 after a pruning event. Does something change "
                "parameters on single ranks, or does the network depend on the rank?"
            )


def check_masks_agree(trainer: pl.Trainer, masks: Mapping[str, Tensor]) -> None:
    """Every rank must have found the same masks.

    Raises:
        RuntimeError: On every rank, if they differ.
    """
    first, *others = gathered(trainer, {name: _checksum(mask) for name, mask in masks.items()})
    if any(own != first for own in others):
        raise RuntimeError(
            "ranks have exchanged different weights. Does something change parameters or gradients on single ranks?"
        )


def plan_checksums(plan: Plan, network: nn.Module) -> dict[str, Any]:
    """Checksums of what ``plan`` keeps and masks, and the attributes of ``network`` that it sets, as they are now."""
    kept = {
        f"plan of {name}, dimension {dim}": _checksum(i) for name, dims in plan.keep.items() for dim, i in dims.items()
    }
    masked = {f"mask of {name}": _checksum(mask) for name, mask in plan.masks.items()}
    set_ = {
        f"{path}.{name}": getattr(network.get_submodule(path), name)
        for path, values in plan.attributes.items()
        for name in values
    }
    return {"removed modules": list(plan.removed_modules), **kept, **masked, **set_}


def fingerprints(network: nn.Module, without: Collection[str] = ()) -> dict[str, tuple[list[int], int]]:
    """For every parameter its shape and a checksum of its bits."""
    return {
        name: (list(parameter.shape), _checksum(parameter.detach()))
        for name, parameter in network.named_parameters()
        if name not in without
    }


def _checksum(tensor: Tensor) -> int:
    values = tensor.cpu().flatten()
    real = torch.view_as_real(values) if values.is_complex() else values
    return zlib.crc32(real.contiguous().view(torch.uint8).numpy().tobytes())
