"""The plan that removes given units of a network, with the attributes and scalars that follow."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_prune.coupling.groups import Coupling
from lightning_prune.coupling.symbols.sizes import evaluate
from lightning_prune.surgery.plan import Plan, kept_factors


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


def compensate_scalars(
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
    return replace(plan, scales=kept_factors(factors, plan)), inexact


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
