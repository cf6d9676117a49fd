"""Plan of one pruning event: kept indices, masks, attributes and removed modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_prune.network.names import is_inside

_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class Plan:
    """Plan of one pruning event: what is kept of a network, in its shapes before the event.

    Attributes:
        keep: Tensor name -> dimension -> kept indices (int64, ascending), for physical removal.
        masks: Parameter name -> bool mask of its shape, True where the weight survives.
        attributes: Module name -> attribute -> new value, for integers that depend on the widths, such as
            ``num_heads``; for tuples and lists {position: value}.
        scales: Tensor name -> dimension -> one factor for every kept index. Weights are multiplied by them to
            compensate
            for scalars that forward computes from a width.
        removed_modules: Names of the modules that are replaced by an identity.

    Example:
        >>> first = Plan(keep={"fc.weight": {0: torch.tensor([0, 2, 3])}})
        >>> second = Plan(keep={"fc.weight": {0: torch.tensor([1, 2])}})
        >>> first.then(second).keep["fc.weight"][0]
        tensor([2, 3])
    """

    keep: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scales: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)
    removed_modules: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether the plan removes or masks anything."""
        return self.shrinks or bool(self.masks)

    @property
    def shrinks(self) -> bool:
        """Whether the plan physically removes anything."""
        return bool(self.keep) or bool(self.removed_modules)

    def then(self, later: Plan) -> Plan:
        """The composition of this plan and ``later``, a plan in the shapes that this one gives."""
        keep = {name: dict(dims) for name, dims in self.keep.items()}
        for name, dims in later.keep.items():
            earlier_dims = keep.setdefault(name, {})
            for dim, index in dims.items():
                earlier_dims[dim] = earlier_dims[dim][index] if dim in earlier_dims else index
        attributes = {name: dict(values) for name, values in self.attributes.items()}
        for name, values in later.attributes.items():
            earlier = attributes.setdefault(name, {})
            for attribute, value in values.items():
                entries = isinstance(value, Mapping) and isinstance(earlier.get(attribute), Mapping)
                earlier[attribute] = {**earlier[attribute], **value} if entries else value
        removed = [name for name in self.removed_modules if not is_inside(name, later.removed_modules)]
        return Plan(
            keep=_outside(later.removed_modules, keep),
            masks=_outside(later.removed_modules, {**self.slice_masks(later), **later.masks}),
            attributes=_outside(later.removed_modules, attributes),
            scales=_outside(later.removed_modules, _both_scales(self, later)),
            removed_modules=(*removed, *later.removed_modules),
        )

    def slice_masks(self, later: Plan) -> dict[str, Tensor]:
        """The masks of this plan in the shapes after ``later``."""
        remaining = _outside(later.removed_modules, self.masks)
        return {name: select(mask, later.keep.get(name, {})) for name, mask in remaining.items()}

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain dicts and tensors, for a checkpoint."""
        return {
            "keep": {name: dict(dims) for name, dims in self.keep.items()},
            "masks": dict(self.masks),
            "attributes": {name: dict(values) for name, values in self.attributes.items()},
            "scales": {name: dict(dims) for name, dims in self.scales.items()},
            "skipped": list(self.removed_modules),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Plan:
        """The plan from the output of ``to_dict``."""
        return cls(
            keep=state["keep"],
            masks=state["masks"],
            attributes=state.get("attributes", {}),
            scales=state.get("scales", {}),
            removed_modules=tuple(state.get("skipped", ())),
        )


def _outside(paths: Collection[str], entries: Mapping[str, _Entry]) -> dict[str, _Entry]:
    return {name: entry for name, entry in entries.items() if not is_inside(name, paths)}


def _both_scales(first: Plan, later: Plan) -> dict[str, dict[int, Tensor]]:
    """The products of the factors of two plans, in the shapes after the later one."""
    scales = kept_factors(first.scales, later)
    for name, dims in later.scales.items():
        own = scales.setdefault(name, {})
        own.update({dim: factors * own[dim] if dim in own else factors for dim, factors in dims.items()})
    return scales


def kept_factors(factors: Mapping[str, Mapping[int, Tensor]], plan: Plan) -> dict[str, dict[int, Tensor]]:
    """The factors of the indices that ``plan`` keeps."""
    return {
        name: {dim: values[plan.keep.get(name, {}).get(dim, slice(None))] for dim, values in dims.items()}
        for name, dims in factors.items()
    }


def select(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """``tensor`` with the kept indices along each dimension of ``dims``, in its memory format."""
    result = tensor
    if tensor.is_meta:  # index_select on the meta device is written in Python, and slow
        shape = [len(dims[dim]) if dim in dims else size for dim, size in enumerate(tensor.shape)]
        result = torch.empty(shape, dtype=tensor.dtype, device="meta")
    else:
        for dim, index in dims.items():
            result = result.index_select(dim, index.to(result.device))
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if channels_last and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=channels_last):
        result = result.contiguous(memory_format=channels_last)
    return result
