"""Weights that are divided by a norm of themselves, as ``weight_norm`` and ``spectral_norm`` of PyTorch make them.

A weight ``g · v / |v|`` that reads fewer channels has a smaller ``|v|``, so all of its rows would grow. ``g`` makes up
for that. A weight ``W / σ`` is the same for every length of ``W``: nothing can make up for another largest singular
value ``σ``, but the vectors that estimate it are kept at length 1, without which they would estimate too little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lightning_prune.coupling.groups import Coupling
from lightning_prune.network.tensors import named_tensors
from lightning_prune.surgery.plan import Plan, select

SPECTRAL = "spectral_norm divides its weight by the largest singular value, which is another one with fewer channels"


def weight_norm_magnitudes(module: nn.Module) -> dict[str, str]:
    """Name of each direction ``v`` of ``weight_norm`` -> name of its length ``g``."""
    found = {}
    for path, owner in module.named_modules():
        if isinstance(owner, ParametrizationList) and isinstance(owner[0], parametrizations._WeightNorm):
            found[f"{path}.original1"] = f"{path}.original0"
        for hook in _hooks(owner, WeightNorm):
            found[_join(path, f"{hook.name}_v")] = _join(path, f"{hook.name}_g")
    return found


def spectral_norm_vectors(module: nn.Module) -> dict[str, tuple[str, str]]:
    """Name of each weight under ``spectral_norm`` -> names of the vectors that estimate its singular value."""
    found = {}
    for path, owner in module.named_modules():
        for number, step in enumerate(owner if isinstance(owner, ParametrizationList) else ()):
            if isinstance(step, parametrizations._SpectralNorm):
                found[f"{path}.original"] = f"{path}.{number}._u", f"{path}.{number}._v"
        for hook in _hooks(owner, SpectralNorm):
            own = _join(path, hook.name)
            found[f"{own}_orig"] = f"{own}_u", f"{own}_v"
    return found


def rescale_weight_norms(plan: Plan, module: nn.Module) -> Plan:
    """``plan`` with factors for all lengths and estimates whose weights it cuts."""
    tensors = dict(named_tensors(module))
    factors = {name: dict(dims) for name, dims in plan.scales.items()}
    for direction, length in weight_norm_magnitudes(module).items():
        cut = plan.keep.get(direction, {})
        if cut:
            ratio = _ratio(tensors[direction], tensors[length], cut)
            dim = next((dim for dim, size in enumerate(ratio.shape) if size > 1), 0)
            own = factors.setdefault(length, {})
            own[dim] = ratio.flatten() * own[dim].to(ratio) if dim in own else ratio.flatten()
    for vectors in spectral_norm_vectors(module).values():
        for name in vectors:
            if name in plan.keep and name in tensors:
                left = select(tensors[name].detach(), plan.keep[name])
                factors[name] = {0: (1 / left.norm()).expand(len(left)).cpu()}
    return replace(plan, scales=factors)


def update_magnitude(direction: Tensor, length: Tensor, before: Tensor) -> None:
    """Change ``length`` as the norms of ``direction`` have changed since ``before``; rows without any get no length."""
    over = _over(direction, length)
    old, new = (torch.linalg.vector_norm(t, dim=over, keepdim=True) for t in (before, direction))
    length.mul_(torch.where(old > 0, new / old, 1.0).view_as(length))
    direction.copy_(torch.where(new > 0, direction, before))  # 0 / 0 is no number


def spectral_norm_groups(module: nn.Module, pruned: list[str], coupling: Coupling) -> dict[str, str]:
    """Of the groups ``pruned`` those that have a part in a weight under ``spectral_norm``, and why that matters."""
    weights = spectral_norm_vectors(module)
    return {name: SPECTRAL for name in pruned if any(m.tensor in weights for m in coupling.groups[name].members)}


def _ratio(direction: Tensor, length: Tensor, cut: Mapping[int, Tensor]) -> Tensor:
    """By how much the norms of the rows that stay shrink, in the shape that ``length`` will have; on the CPU."""
    over = _over(direction, length)
    rows = select(direction.detach(), {dim: index for dim, index in cut.items() if dim not in over})
    left = select(rows, {dim: index for dim, index in cut.items() if dim in over})
    before, after = (torch.linalg.vector_norm(t.double(), dim=over, keepdim=True) for t in (rows, left))
    return torch.where(before > 0, after / before, 1.0).cpu()


def _over(direction: Tensor, length: Tensor) -> list[int]:
    """The dimensions that norms are taken over."""
    return [dim for dim in range(direction.dim()) if length.dim() == 0 or length.shape[dim] == 1]


def _hooks(owner: nn.Module, kind: type) -> list[Any]:
    return [hook for hook in owner._forward_pre_hooks.values() if isinstance(hook, kind)]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
