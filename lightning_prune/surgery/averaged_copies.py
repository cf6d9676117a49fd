"""Averaged copies of a network (EMA, SWA), which have to follow what happens to the network."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_prune.checkpoint.manifest import track_plan
from lightning_prune.coupling.groups import Coupling
from lightning_prune.network.tensors import named_modules, named_tensors
from lightning_prune.surgery.apply import apply_plan
from lightning_prune.surgery.plan import Plan, is_inside

_Entry = TypeVar("_Entry")


def averages_in(module: nn.Module) -> dict[str, AveragedModel]:
    """The averaged models that are submodules of ``module``, by name."""
    return {path: below for path, below in named_modules(module) if path and isinstance(below, AveragedModel)}


def frozen_copies(module: nn.Module) -> dict[str, str]:
    """Name of each submodule that is a copy of another, with equal values that do not train -> name of that one.

    So begin the teachers and target networks that a LightningModule keeps itself. Averaged models are none of them.
    """
    if all(parameter.requires_grad for parameter in module.parameters()):
        return {}
    averages = averages_in(module)
    parts = [(path, part) for path, part in named_modules(module) if path and not is_inside(path, averages)]
    by_kind: dict[object, list[tuple[str, nn.Module]]] = {}
    for path, part in parts:
        shapes = tuple((name, tensor.shape) for name, tensor in _own_tensors(part).items())
        if any(len(shape) > 1 for _, shape in shapes):  # fresh norms are all alike
            by_kind.setdefault((type(part), shapes), []).append((path, part))
    found: dict[str, str] = {}
    for alike in by_kind.values():
        trained = [(path, part) for path, part in alike if any(p.requires_grad for p in part.parameters())]
        for path, part in alike:
            if not is_inside(path, found) and not any(p.requires_grad for p in part.parameters()):
                source = next((name for name, other in trained if _equal(part, other)), None)
                found |= {} if source is None else {path: source}
    return found


def _equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(_own_tensors(one).values(), _own_tensors(other).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def copies_held_by(holders: Iterable[object], module: nn.Module) -> list[nn.Module]:
    """Copies of all of ``module`` in attributes of ``holders``, or in lists, tuples and dicts there; each once.

    They are of its class: what Lightning's averaging callbacks keep, or an ``AveragedModel`` of ``module``.
    """
    return [copy for copy in _copies(holders) if type(copy) is type(module) and copy is not module]


def source_of(copy: nn.Module, module: nn.Module) -> str | None:
    """The name of the part of ``module`` that ``copy`` is a copy of, None where there is none; "" is all of it.

    Both have the same class, and tensors of the same names and shapes. Of several such parts it is the one with the
    nearest weights: an average stays near what it averages.
    """
    wanted = _own_tensors(copy)
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    averages = averages_in(module)
    parts: dict[str, dict[str, Tensor]] = {}
    for path, part in named_modules(module):
        if type(part) is type(copy) and not is_inside(path, averages):
            own = _own_tensors(part)
            if {name: tensor.shape for name, tensor in own.items()} == shapes:
                parts[path] = own
    if len(parts) < 2 or not wanted:
        return next(iter(parts), None)
    return min(parts, key=lambda path: _distance(parts[path], wanted))


def plan_for_part(plan: Plan, module: nn.Module, path: str) -> Plan:
    """What ``plan``, made for ``module``, says about its part at ``path``, in the part's own names.

    A plan knows a shared tensor or module by its first name in ``module``, which may lie outside the part.
    """
    part, tensors = module.get_submodule(path), _names_in(module, path)
    paths = {id(below): name for name, below in named_modules(module)}
    modules = {name: paths[id(below)] for name, below in named_modules(part)}
    return Plan(
        keep=_renamed(plan.keep, tensors),
        masks=_renamed(plan.masks, tensors),
        attributes=_renamed(plan.attributes, modules),
        scales=_renamed(plan.scales, tensors),
        skipped=tuple(own for own, name in modules.items() if own and name in plan.skipped),
    )


def with_averages(plan: Plan, module: nn.Module) -> Plan:
    """``plan``, and the same for every averaged model inside ``module``; neither is changed.

    Args:
        plan: Made for ``module``.
        module: A network, as it is before the plan is carried out.
    """
    for path, average in averages_in(module).items():
        own = _plan_for_copy(plan, module, average.module, f"at {path!r}")
        prefix = f"{path}.module"
        plan = Plan(
            keep=_with(plan.keep, prefix, own.keep),
            masks=_with(plan.masks, prefix, own.masks),
            attributes=_with(plan.attributes, prefix, own.attributes),
            scales=_with(plan.scales, prefix, own.scales),
            skipped=(*plan.skipped, *(f"{prefix}.{name}" for name in own.skipped)),
        )
    return plan


def following_averages(coupling: Coupling, module: nn.Module) -> Coupling:
    """``coupling``, with the averaged models inside ``module`` as large as what they average."""
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


def apply_to_copies(holders: Iterable[object], plan: Plan, module: nn.Module) -> None:
    """Carry out ``plan`` on the copies that ``holders`` keep outside ``module``, before it is carried out on that.

    These are copies of all of ``module``, and averaged models of its parts. Their masked weights become zero; an
    average of zeros stays zero.
    """
    inside = set(module.modules())
    holders = list(holders)
    averaged = [average.module for average in _held(holders) if isinstance(average, AveragedModel)]
    for copy in dict.fromkeys([*copies_held_by(holders, module), *averaged]):
        if copy not in inside:
            own = _plan_for_copy(plan, module, copy, "outside the network")
            track_plan(copy, own)
            apply_plan(copy, own)
            tensors = dict(named_tensors(copy))
            for name, mask in own.masks.items():
                tensors[name].data.mul_(mask.to(tensors[name].device))


def _plan_for_copy(plan: Plan, module: nn.Module, copy: nn.Module, where: str) -> Plan:
    source = source_of(copy, module)
    if source is None:
        warnings.warn(
            f"the averaged {type(copy).__name__} {where} is a copy of no part of {type(module).__name__} as it is now: "
            "it stays as it is. Make it from the network itself, or from a submodule.",
            stacklevel=3,
        )
        return Plan()
    return plan_for_part(plan, module, source)


def _names_in(module: nn.Module, path: str) -> dict[str, str]:
    """For every tensor of the part at ``path``, by its name there, its name in ``module``."""
    names = {id(tensor): name for name, tensor in named_tensors(module)}
    return {name: names[id(tensor)] for name, tensor in named_tensors(module.get_submodule(path))}


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of ``module`` that are in no averaged model inside it."""
    averages = averages_in(module)
    return {name: tensor for name, tensor in named_tensors(module) if not is_inside(name, averages)}


@torch.no_grad()
def _distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    pairs = [(first[name], tensor) for name, tensor in second.items() if tensor.is_floating_point()]
    return sum(float((a.to(b.device) - b).double().square().sum()) for a, b in pairs)


def _renamed(entries: Mapping[str, _Entry], names: Mapping[str, str]) -> dict[str, _Entry]:
    """Entries by new names; ``names`` tells the old one of each."""
    return {new: entries[old] for new, old in names.items() if old in entries}


def _with(entries: Mapping[str, _Entry], path: str, own: Mapping[str, _Entry]) -> dict[str, _Entry]:
    """``entries`` with those of the module at ``path`` replaced by ``own``, which has the names inside it."""
    others = {name: entry for name, entry in entries.items() if not is_inside(name, [path])}
    return others | {f"{path}.{name}".rstrip("."): entry for name, entry in own.items()}


def _copies(holders: Iterable[object]) -> list[nn.Module]:
    """The modules that ``holders`` keep; of an averaged model, what it averages."""
    found = [item.module if isinstance(item, AveragedModel) else item for item in _held(holders)]
    return list(dict.fromkeys(item for item in found if isinstance(item, nn.Module)))


def _held(holders: Iterable[object]) -> Iterator[Any]:
    for holder in holders:
        for value in vars(holder).values():
            if isinstance(value, Mapping):
                yield from value.values()
            elif isinstance(value, (list, tuple)):
                yield from value
            else:
                yield value
