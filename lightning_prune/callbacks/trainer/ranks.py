"""Consistency of ranks: statistics reduced over them, and checksums that compare their networks."""

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
    """``totals`` reduced over all ranks, which must all call this; a name that a rank lacks counts as 0 there."""
    device = trainer.strategy.root_device
    shapes = {name: tuple(total.shape) for name, total in totals.items()}
    everywhere = {name: shape for own in gathered(trainer, shapes) for name, shape in own.items()}
    reduced: dict[str, Tensor] = {}
    for name in sorted(everywhere):
        own = totals[name].to(device, copy=True) if name in totals else torch.zeros(everywhere[name], device=device)
        reduced[name] = trainer.strategy.reduce(own, reduce_op=how)  # type: ignore[assignment]  # works in place
    return reduced


def gathered(trainer: pl.Trainer, value: Any) -> list[Any]:
    """``value`` of each rank, in their order."""
    values: list[Any] = [value] * trainer.world_size
    if trainer.world_size > 1:
        distributed.all_gather_object(values, value)
    return values


def check_ranks_agree(trainer: pl.Trainer, network: nn.Module, plan: Plan) -> None:
    """Check that the plan, the parameters and the attributes that the plan sets are equal on all ranks.

    Buffers may differ: DDP broadcasts those of rank 0 before the next forward pass. Sharded parameters differ by
    definition.

    Raises:
        RuntimeError: On every rank; names the plan, or the first parameter or attribute that differs.
    """
    if trainer.world_size == 1 or is_sharded(network):
        return
    ignored = getattr(network, "_ddp_params_and_buffers_to_ignore", ())
    first, *others = gathered(trainer, {**plan_checksums(plan, network), **fingerprints(network, ignored)})
    for rank, own in enumerate(others, start=1):
        name = next((name for name in first if own.get(name) != first[name]), None)
        if name is not None:
            raise RuntimeError(
                f"{name!r} is not the same on rank {rank} as on rank 0 after a pruning event. Does some code change "
                "parameters on single ranks, or does the network depend on the rank?"
            )


def check_masks_agree(trainer: pl.Trainer, masks: Mapping[str, Tensor]) -> None:
    """Check that all ranks have computed the same masks.

    Raises:
        RuntimeError: On every rank, if they differ.
    """
    first, *others = gathered(trainer, {name: _checksum(mask) for name, mask in masks.items()})
    if any(own != first for own in others):
        raise RuntimeError(
            "ranks have regrown different weights. Does some code change parameters or gradients on single ranks?"
        )


def plan_checksums(plan: Plan, network: nn.Module) -> dict[str, Any]:
    """Checksums of the indices and masks of ``plan``, and current values of the attributes of ``network`` it sets."""
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


def fingerprints(network: nn.Module, ignored: Collection[str] = ()) -> dict[str, tuple[list[int], int]]:
    """Shape and checksum of each parameter, by name."""
    return {
        name: (list(parameter.shape), _checksum(parameter.detach()))
        for name, parameter in network.named_parameters()
        if name not in ignored
    }


def _checksum(tensor: Tensor) -> int:
    values = tensor.cpu().flatten()
    real = torch.view_as_real(values) if values.is_complex() else values
    return zlib.crc32(real.contiguous().view(torch.uint8).numpy().tobytes())
