"""Averaged models (EMA, SWA) and other copies of a network: where they are held, and which modules they copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_prune.network.names import is_inside
from lightning_prune.network.tensors import named_modules, named_tensors


def averages_in(module: nn.Module) -> dict[str, AveragedModel]:
    """The averaged models that are submodules of ``module``, by name."""
    return {path: below for path, below in named_modules(module) if path and isinstance(below, AveragedModel)}


def frozen_copies(module: nn.Module) -> dict[str, str]:
    """Find submodules that are frozen copies of other submodules, such as teachers and target networks.

    A copy has the same class, shapes and values, and no parameter of it is trained. Averaged models are not included.

    Returns:
        Name of the copy -> name of the submodule that it copies.
    """
    if all(parameter.requires_grad for parameter in module.parameters()):
        return {}
    averages = averages_in(module)
    parts = [(path, part) for path, part in named_modules(module) if path and not is_inside(path, averages)]
    by_kind: dict[object, list[tuple[str, nn.Module]]] = {}
    for path, part in parts:
        shapes = tuple((name, tensor.shape) for name, tensor in _own_tensors(part).items())
        if any(len(shape) > 1 for _, shape in shapes):  # all new norm layers are equal
            by_kind.setdefault((type(part), shapes), []).append((path, part))
    found: dict[str, str] = {}
    for candidates in by_kind.values():
        trained = [(path, part) for path, part in candidates if any(p.requires_grad for p in part.parameters())]
        for path, part in candidates:
            if not is_inside(path, found) and not any(p.requires_grad for p in part.parameters()):
                source = next((name for name, other in trained if _equal(part, other)), None)
                found |= {} if source is None else {path: source}
    return found


def _equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(_own_tensors(one).values(), _own_tensors(other).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def copies_held_by(holders: Iterable[object], module: nn.Module) -> list[nn.Module]:
    """Copies of ``module`` in the attributes of ``holders``, or in lists, tuples and dicts there; each copy once.

    A copy has the class of ``module``: the average of one of Lightning's averaging callbacks, or the module inside an
    ``AveragedModel``.
    """
    return [copy for copy in _copies(holders) if type(copy) is type(module) and copy is not module]


def source_of(copy: nn.Module, module: nn.Module) -> str | None:
    """The name of the submodule of ``module`` that ``copy`` is a copy of: "" for ``module`` itself, None for no match.

    Both have the same class and tensors of the same names and shapes. Of several such submodules it is the one with the
    nearest weights, because an average stays near the weights that it averages.
    """
    copied = _own_tensors(copy)
    shapes = {name: tensor.shape for name, tensor in copied.items()}
    averages = averages_in(module)
    parts: dict[str, dict[str, Tensor]] = {}
    for path, part in named_modules(module):
        if type(part) is type(copy) and not is_inside(path, averages):
            own = _own_tensors(part)
            if {name: tensor.shape for name, tensor in own.items()} == shapes:
                parts[path] = own
    if len(parts) < 2 or not copied:
        return next(iter(parts), None)
    return min(parts, key=lambda path: _distance(parts[path], copied))


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of ``module`` outside the averaged models inside it."""
    averages = averages_in(module)
    return {name: tensor for name, tensor in named_tensors(module) if not is_inside(name, averages)}


@torch.no_grad()
def _distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    pairs = [(first[name], tensor) for name, tensor in second.items() if tensor.is_floating_point()]
    return sum(float((a.to(b.device) - b).double().square().sum()) for a, b in pairs)


def _copies(holders: Iterable[object]) -> list[nn.Module]:
    """The modules in attributes of ``holders``; of an averaged model, the module inside it."""
    found = [item.module if isinstance(item, AveragedModel) else item for item in attribute_values(holders)]
    return list(dict.fromkeys(item for item in found if isinstance(item, nn.Module)))


def attribute_values(holders: Iterable[object]) -> Iterator[Any]:
    """The values of the attributes of ``holders``, and the entries of the lists, tuples and dicts among them."""
    for holder in holders:
        for value in vars(holder).values():
            if isinstance(value, Mapping):
                yield from value.values()
            elif isinstance(value, (list, tuple)):
                yield from value
            else:
                yield value
