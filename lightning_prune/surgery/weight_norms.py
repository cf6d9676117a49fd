"""Weights that are divided by their own norm, by ``weight_norm`` and ``spectral_norm`` of PyTorch.

With fewer input channels, the norm ``|v|`` of a weight ``g · v / |v|`` is smaller, so that all of its rows would become
larger; the magnitude ``g`` is scaled to compensate for this. A weight ``W / σ`` does not depend on the scale of ``W``,
so that a change of its largest singular value ``σ`` cannot be compensated. The vectors that estimate ``σ`` are
normalized to length 1, because shorter vectors underestimate it.
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

SPECTRAL = "spectral_norm divides its weight by the largest singular value, which changes with fewer channels"


def weight_norm_magnitudes(module: nn.Module) -> dict[str, str]:
    """Name of each direction ``v`` of ``weight_norm`` -> name of its magnitude ``g``."""
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
    """Extend ``plan`` by factors for the magnitudes and singular vectors of the weights that it slices."""
    tensors = dict(named_tensors(module))
    factors = {name: dict(dims) for name, dims in plan.scales.items()}
    for direction, magnitude in weight_norm_magnitudes(module).items():
        cut = plan.keep.get(direction, {})
        if cut:
            ratio = _ratio(tensors[direction], tensors[magnitude], cut)
            dim = next((dim for dim, size in enumerate(ratio.shape) if size > 1), 0)
            own = factors.setdefault(magnitude, {})
            own[dim] = ratio.flatten() * own[dim].to(ratio) if dim in own else ratio.flatten()
    for vectors in spectral_norm_vectors(module).values():
        for name in vectors:
            if name in plan.keep and name in tensors:
                kept = select(tensors[name].detach(), plan.keep[name])
                factors[name] = {0: (1 / kept.norm()).expand(len(kept)).cpu()}
    return replace(plan, scales=factors)


def update_magnitude(direction: Tensor, magnitude: Tensor, before: Tensor) -> None:
    """Scale ``magnitude`` by the change of the norms of ``direction`` since ``before``; for rows of zeros to zero."""
    over = _norm_dims(direction, magnitude)
    old, new = (torch.linalg.vector_norm(t, dim=over, keepdim=True) for t in (before, direction))
    magnitude.mul_(torch.where(old > 0, new / old, 1.0).view_as(magnitude))
    direction.copy_(torch.where(new > 0, direction, before))  # avoids 0 / 0


def spectral_norm_groups(module: nn.Module, pruned: list[str], coupling: Coupling) -> dict[str, str]:
    """Group name -> reason, for those of the groups ``pruned`` that are part of a weight under ``spectral_norm``."""
    weights = spectral_norm_vectors(module)
    return {name: SPECTRAL for name in pruned if any(m.tensor in weights for m in coupling.groups[name].members)}


def _ratio(direction: Tensor, magnitude: Tensor, cut: Mapping[int, Tensor]) -> Tensor:
    """New norms of the kept rows over their old norms, in the shape that ``magnitude`` will have; on the CPU."""
    over = _norm_dims(direction, magnitude)
    rows = select(direction.detach(), {dim: index for dim, index in cut.items() if dim not in over})
    kept = select(rows, {dim: index for dim, index in cut.items() if dim in over})
    before, after = (torch.linalg.vector_norm(t.double(), dim=over, keepdim=True) for t in (rows, kept))
    return torch.where(before > 0, after / before, 1.0).cpu()


def _norm_dims(direction: Tensor, magnitude: Tensor) -> list[int]:
    """The dimensions over which norms are taken."""
    return [dim for dim in range(direction.dim()) if magnitude.dim() == 0 or magnitude.shape[dim] == 1]


def _hooks(owner: nn.Module, kind: type) -> list[Any]:
    return [hook for hook in owner._forward_pre_hooks.values() if isinstance(hook, kind)]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
