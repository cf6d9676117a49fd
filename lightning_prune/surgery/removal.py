"""Plans that remove units of a network, with the attributes and scalars that depend on the widths."""

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
    """The plan that removes some units from all tensors that they are coupled to.

    Args:
        removed: Group name -> bool tensor of shape (units,), True where the unit is removed.
        coupling: The analysis of the network in its present shapes.
    """
    keep: dict[str, dict[int, Tensor]] = {}
    removed_indices: dict[tuple[str, int], npt.NDArray[np.bool_]] = {}
    for name, units in removed.items():
        selected = units.numpy()
        if not selected.any():
            continue
        whole: dict[int, Tensor] = {}
        for member in coupling.groups[name].members:
            size = coupling.shapes[member.tensor][member.dim]
            if member.index.numel() < size:  # the dimension also contains other groups or fixed channels
                mask = removed_indices.setdefault((member.tensor, member.dim), np.zeros(size, dtype=np.bool_))
                mask[member.index.numpy()[selected].ravel()] = True
                continue
            if id(member.index) not in whole:
                whole[id(member.index)] = member.index[~units].flatten().sort().values
            keep.setdefault(member.tensor, {})[member.dim] = whole[id(member.index)]
    for (tensor, dim), mask in removed_indices.items():
        keep.setdefault(tensor, {})[dim] = torch.from_numpy(np.flatnonzero(~mask))
    return Plan(
        keep, attributes=_changed_attributes(coupling, {name: int(units.sum()) for name, units in removed.items()})
    )


def compensate_scalars(
    plan: Plan,
    pruned: Collection[str],
    coupling: Coupling,
    scalars: Sequence[float],
    constants: Sequence[tuple[float, ...]] | None = None,
) -> tuple[Plan, dict[str, str]]:
    """Extend ``plan`` by factors for weights that compensate for changed scalars.

    Args:
        plan: What is kept.
        pruned: Names of the groups that lose units.
        coupling: The analysis of the network in its present shapes.
        scalars: The scalars of ``coupling`` in the smaller network.
        constants: The constants of ``coupling`` in the smaller network; None where they are unknown.

    Returns:
        The plan with factors, and group name -> reason for the groups whose removal is not compensated, so that it is
        not equal to masking.
    """
    factors: dict[str, dict[int, Tensor]] = {}
    inexact: dict[str, str] = {}

    def mark_inexact(groups: Collection[str], where: str, what: str) -> None:
        """Add a reason to the pruned ones among ``groups``; to all pruned groups where it depends on none of these."""
        reason = f"{where!r}: forward {what}" if where else f"forward {what}"
        inexact.update(dict.fromkeys([name for name in pruned if name in groups] or pruned, reason))

    same = len(scalars) == len(coupling.scalars), constants is None or len(constants) == len(coupling.constants)
    if coupling.on_meta and not all(same):  # with values, a detector may run operations a different number of times
        mark_inexact((), "", "follows a different code path with fewer channels")
    if not same[0]:
        return plan, inexact
    for scalar, after in zip(coupling.scalars, scalars, strict=True):
        if math.isclose(scalar.value, after, rel_tol=1e-9):
            continue
        if not scalar.rows or not scalar.value * after > 0:
            mark_inexact(scalar.groups, scalar.where, "multiplies by a number that depends on the width")
            continue
        for name, (dim, index) in scalar.rows.items():
            ones = torch.ones(coupling.shapes[name][dim], dtype=torch.float64)
            own = factors.setdefault(name, {}).setdefault(dim, ones)
            own[index] *= (scalar.value / after) ** (1 / scalar.power)
    for (before, groups), now in zip(coupling.constants, constants or () if same[1] else (), strict=False):
        if repr(before) != repr(now):  # nan differs from itself
            mark_inexact(groups, before.where, "computes with a number that depends on the width")
    return replace(plan, scales=kept_factors(factors, plan)), inexact


def _changed_attributes(coupling: Coupling, removed: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Module name -> attribute -> new value for the attributes that change; {position: value} for tuples."""
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
