"""Plan: what one event keeps."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_prune.coupling.groups import Coupling
from lightning_prune.coupling.symbols.sizes import evaluate

_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class Plan:
    """What is kept of a network, against its shapes before the event.

    Attributes:
        keep: Tensor name -> dimension -> surviving indices (int64, ascending). Physical removal.
        masks: Parameter name -> bool mask of its shape, True where the weight survives.
        attributes: Module name -> attribute -> value, for integers that modules keep and that have to follow.
        scales: Tensor name -> dimension -> factor for every surviving index, for weights that make up for a scalar
            which forward computes from a width.
        skipped: Names of the modules that are removed as a whole: an identity takes their place.

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
    skipped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything is removed or masked at all."""
        return self.shrinks or bool(self.masks)

    @property
    def shrinks(self) -> bool:
        """Whether anything is physically removed."""
        return bool(self.keep) or bool(self.skipped)

    def then(self, later: Plan) -> Plan:
        """One plan that does what this one and then ``later`` do."""
        keep = {name: dict(dims) for name, dims in self.keep.items()}
        for name, dims in later.keep.items():
            own = keep.setdefault(name, {})
            for dim, index in dims.items():
                own[dim] = own[dim][index] if dim in own else index
        attributes = {name: dict(values) for name, values in self.attributes.items()}
        for name, values in later.attributes.items():
            earlier = attributes.setdefault(name, {})
            for attribute, value in values.items():
                entries = isinstance(value, Mapping) and isinstance(earlier.get(attribute), Mapping)
                earlier[attribute] = {**earlier[attribute], **value} if entries else value
        return Plan(
            keep=_outside(later.skipped, keep),
            masks=_outside(later.skipped, {**self.slice_masks(later), **later.masks}),
            attributes=_outside(later.skipped, attributes),
            scales=_outside(later.skipped, _both_scales(self, later)),
            skipped=(*(name for name in self.skipped if not is_inside(name, later.skipped)), *later.skipped),
        )

    def slice_masks(self, later: Plan) -> dict[str, Tensor]:
        """The masks of this plan in the shapes that ``later`` leaves."""
        left = _outside(later.skipped, self.masks)
        return {name: select(mask, later.keep.get(name, {})) for name, mask in left.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and tensors, for a checkpoint."""
        return {
            "keep": {name: dict(dims) for name, dims in self.keep.items()},
            "masks": dict(self.masks),
            "attributes": {name: dict(values) for name, values in self.attributes.items()},
            "scales": {name: dict(dims) for name, dims in self.scales.items()},
            "skipped": list(self.skipped),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Plan:
        """The plan that ``to_dict`` wrote."""
        return cls(
            keep=state["keep"],
            masks=state["masks"],
            attributes=state.get("attributes", {}),
            scales=state.get("scales", {}),
            skipped=tuple(state.get("skipped", ())),
        )


def is_inside(name: str, paths: Iterable[str]) -> bool:
    """Whether ``name`` is one of ``paths``, or below one.

    Example:
        >>> is_inside("layer1.0.conv1.weight", ["layer1.0"]), is_inside("layer1.01", ["layer1.0"])
        (True, False)
    """
    return any(f"{name}.".startswith(f"{path}.") for path in paths)


def _outside(paths: Collection[str], entries: Mapping[str, _Entry]) -> dict[str, _Entry]:
    return {name: entry for name, entry in entries.items() if not is_inside(name, paths)}


def _both_scales(first: Plan, later: Plan) -> dict[str, dict[int, Tensor]]:
    """The factors of two plans in the shapes that the later one leaves."""
    scales = _kept_factors(first.scales, later)
    for name, dims in later.scales.items():
        own = scales.setdefault(name, {})
        own.update({dim: factors * own[dim] if dim in own else factors for dim, factors in dims.items()})
    return scales


def _kept_factors(factors: Mapping[str, Mapping[int, Tensor]], plan: Plan) -> dict[str, dict[int, Tensor]]:
    """The factors of the indices that ``plan`` keeps."""
    return {
        name: {dim: values[plan.keep.get(name, {}).get(dim, slice(None))] for dim, values in dims.items()}
        for name, dims in factors.items()
    }


def select(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """``tensor`` with only the kept indices along each dimension of ``dims``, in its own memory format."""
    result = tensor
    if tensor.is_meta:  # PyTorch's own is written in Python there
        shape = [len(dims[dim]) if dim in dims else size for dim, size in enumerate(tensor.shape)]
        result = torch.empty(shape, dtype=tensor.dtype, device="meta")
    else:
        for dim, index in dims.items():
            result = result.index_select(dim, index.to(result.device))
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if channels_last and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=channels_last):
        result = result.contiguous(memory_format=channels_last)
    return result


def plan_removal(removed: Mapping[str, Tensor], coupling: Coupling) -> Plan:
    """The plan that removes some units.

    Args:
        removed: Group name -> bool tensor of shape (units,), True where the unit goes.
        coupling: The network as it is now.
    """
    keep: dict[str, dict[int, Tensor]] = {}
    gone: dict[tuple[str, int], npt.NDArray[np.bool_]] = {}
    for name, units in removed.items():
        going = units.numpy()
        if not going.any():
            continue
        whole: dict[int, Tensor] = {}
        for member in coupling.groups[name].members:
            size = coupling.shapes[member.tensor][member.dim]
            if member.index.numel() < size:  # other groups, or channels that stay, have a part of the dimension
                mask = gone.setdefault((member.tensor, member.dim), np.zeros(size, dtype=np.bool_))
                mask[member.index.numpy()[going].ravel()] = True
                continue
            if id(member.index) not in whole:
                whole[id(member.index)] = member.index[~units].flatten().sort().values
            keep.setdefault(member.tensor, {})[member.dim] = whole[id(member.index)]
    for (tensor, dim), mask in gone.items():
        keep.setdefault(tensor, {})[dim] = torch.from_numpy(np.flatnonzero(~mask))
    return Plan(keep, attributes=_following(coupling, {name: int(units.sum()) for name, units in removed.items()}))


def rescaled(
    plan: Plan,
    pruned: Collection[str],
    coupling: Coupling,
    scalars: Sequence[float],
    constants: Sequence[tuple[float, ...]] | None = None,
) -> tuple[Plan, dict[str, str]]:
    """``plan`` with weights that make up for changed scalars, and the groups for which none can: name -> reason.

    Args:
        plan: What is kept.
        pruned: Names of the groups that lose units.
        coupling: The network as it is now.
        scalars: What the scalars of ``coupling`` are in the smaller network.
        constants: The same for its constants; None where they are not known.
    """
    factors: dict[str, dict[int, Tensor]] = {}
    inexact: dict[str, str] = {}

    def blame(groups: Collection[str], where: str, said: str) -> None:
        """Groups whose channels meet a number; where none of these loses any, it follows another width."""
        reason = f"{where!r}: forward {said}" if where else f"forward {said}"
        inexact.update(dict.fromkeys([name for name in pruned if name in groups] or pruned, reason))

    same = len(scalars) == len(coupling.scalars), constants is None or len(constants) == len(coupling.constants)
    if coupling.on_meta and not all(same):  # else values may decide how often a detector computes something
        blame((), "", "takes another way with fewer channels")
    if not same[0]:
        return plan, inexact
    for scalar, after in zip(coupling.scalars, scalars, strict=True):
        if math.isclose(scalar.value, after, rel_tol=1e-9):
            continue
        if not scalar.rows or not scalar.value * after > 0:
            blame(scalar.groups, scalar.where, "multiplies by a number that follows the width")
            continue
        for name, (dim, index) in scalar.rows.items():
            ones = torch.ones(coupling.shapes[name][dim], dtype=torch.float64)
            own = factors.setdefault(name, {}).setdefault(dim, ones)
            own[index] *= (scalar.value / after) ** (1 / scalar.power)
    for (before, groups), now in zip(coupling.constants, constants or () if same[1] else (), strict=False):
        if repr(before) != repr(now):  # nan differs from itself
            blame(groups, before.where, "computes with a number that follows the width")
    return replace(plan, scales=_kept_factors(factors, plan)), inexact


def _following(coupling: Coupling, removed: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The attributes that change with these widths; of a tuple, the entries that change, by their position."""
    found: dict[str, dict[str, Any]] = {}
    for attribute, expression in coupling.attributes.items():
        value = evaluate(expression, removed)
        if value == evaluate(expression, {}):
            continue
        values = found.setdefault(attribute.module, {})
        if attribute.index is None:
            values[attribute.name] = value
        else:
            values.setdefault(attribute.name, {})[attribute.index] = value
    return found
