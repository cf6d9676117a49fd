"""Averaged copies of a network (EMA, SWA), which are pruned along with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_prune.coupling.groups import Coupling
from lightning_prune.network.averages import attribute_values, averages_in, copies_held_by, source_of
from lightning_prune.network.names import is_inside
from lightning_prune.network.tensors import named_modules, named_tensors
from lightning_prune.surgery.apply import apply_plan
from lightning_prune.surgery.plan import Plan

_Entry = TypeVar("_Entry")


def plan_for_part(plan: Plan, module: nn.Module, path: str) -> Plan:
    """The part of ``plan`` that concerns the submodule at ``path``, with the names inside this submodule.

    A plan contains a shared tensor or module under its first name in ``module``, which may be outside the submodule.
    """
    part, tensors = module.get_submodule(path), _names_in(module, path)
    paths = {id(below): name for name, below in named_modules(module)}
    modules = {name: paths[id(below)] for name, below in named_modules(part)}
    return Plan(
        keep=_renamed(plan.keep, tensors),
        masks=_renamed(plan.masks, tensors),
        attributes=_renamed(plan.attributes, modules),
        scales=_renamed(plan.scales, tensors),
        removed_modules=tuple(own for own, name in modules.items() if own and name in plan.removed_modules),
    )


def with_averages(plan: Plan, module: nn.Module) -> Plan:
    """``plan``, extended to every averaged model inside ``module``; neither argument is changed.

    Args:
        plan: A plan for ``module``.
        module: A network to which the plan has not been applied yet.
    """
    for path, average in averages_in(module).items():
        own = _plan_for_copy(plan, module, average.module, f"at {path!r}")
        prefix = f"{path}.module"
        plan = Plan(
            keep=_with(plan.keep, prefix, own.keep),
            masks=_with(plan.masks, prefix, own.masks),
            attributes=_with(plan.attributes, prefix, own.attributes),
            scales=_with(plan.scales, prefix, own.scales),
            removed_modules=(*plan.removed_modules, *(f"{prefix}.{name}" for name in own.removed_modules)),
        )
    return plan


def following_averages(coupling: Coupling, module: nn.Module) -> Coupling:
    """``coupling``, with the dimensions of the averaged models inside ``module`` tied to what they average."""
    averages = averages_in(module)
    sources = {path: source_of(average.module, module) for path, average in averages.items()}
    dims = {
        f"{path}.module.{name}": coupling.param_dims[own]
        for path, source in sources.items()
        if source is not None
        for name, own in _names_in(module, source).items()
        if own in coupling.param_dims
    }
    frozen = {name: reason for name, reason in coupling.frozen.items() if not is_inside(name, averages)}
    return replace(coupling, param_dims={**coupling.param_dims, **dims}, frozen=frozen)


def apply_to_copies(
    holders: Iterable[object], plan: Plan, module: nn.Module, before: Callable[[nn.Module, Plan], None]
) -> None:
    """Apply ``plan`` to the copies that ``holders`` keep outside ``module``, before it is applied to ``module`` itself.

    These are copies of the whole ``module`` and averaged models of its submodules. Their masked weights are set to
    zero; an average of zeros stays zero.

    Args:
        holders: Objects that may keep copies, such as callbacks.
        plan: A plan for ``module``.
        module: The network that was copied.
        before: Called with each copy and its plan before the copy is changed, to record its state.
    """
    inside = set(module.modules())
    holders = list(holders)
    averaged = [average.module for average in attribute_values(holders) if isinstance(average, AveragedModel)]
    for copy in dict.fromkeys([*copies_held_by(holders, module), *averaged]):
        if copy not in inside:
            own = _plan_for_copy(plan, module, copy, "outside the network")
            before(copy, own)
            apply_plan(copy, own)
            tensors = dict(named_tensors(copy))
            for name, mask in own.masks.items():
                tensors[name].data.mul_(mask.to(tensors[name].device))


def _plan_for_copy(plan: Plan, module: nn.Module, copy: nn.Module, where: str) -> Plan:
    source = source_of(copy, module)
    if source is None:
        warnings.warn(
            f"the averaged {type(copy).__name__} {where} is not a copy of {type(module).__name__} or of one of its "
            "submodules, so it is not pruned. Create it from the network itself, or from a submodule.",
            stacklevel=3,
        )
        return Plan()
    return plan_for_part(plan, module, source)


def _names_in(module: nn.Module, path: str) -> dict[str, str]:
    """Name of a tensor in the submodule at ``path`` -> its name in ``module``."""
    names = {id(tensor): name for name, tensor in named_tensors(module)}
    return {name: names[id(tensor)] for name, tensor in named_tensors(module.get_submodule(path))}


def _renamed(entries: Mapping[str, _Entry], names: Mapping[str, str]) -> dict[str, _Entry]:
    """Entries by their new names; ``names`` maps new names to old ones."""
    return {new: entries[old] for new, old in names.items() if old in entries}


def _with(entries: Mapping[str, _Entry], path: str, own: Mapping[str, _Entry]) -> dict[str, _Entry]:
    """``entries`` with those of the module at ``path`` replaced by ``own``, whose names are relative to this module."""
    others = {name: entry for name, entry in entries.items() if not is_inside(name, [path])}
    return others | {f"{path}.{name}".rstrip("."): entry for name, entry in own.items()}
