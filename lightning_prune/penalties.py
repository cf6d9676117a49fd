"""Regularizers that drive unimportant weights and channels towards zero, as gradients of their penalties."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from lightning_prune.coupling.groups import Group, Member
from lightning_prune.criteria.batchnorm import batch_norm_scales
from lightning_prune.network.names import is_inside
from lightning_prune.surgery.plan import Plan


def slimming_gammas(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable scale γ of every batch norm, by qualified name.

    Raises:
        ValueError: If there is no trainable scale.
    """
    gammas = {name: gamma for name, gamma in batch_norm_scales(module).items() if gamma.requires_grad}
    if not gammas:
        raise ValueError(
            f"{type(module).__name__} has no batch norm with a trainable scale for network slimming; use "
            "the criterion Magnitude or Taylor without a penalty"
        )
    return gammas


@torch.no_grad()
def add_l1_subgradient(gammas: list[nn.Parameter], strength: float) -> None:
    """Add strength · sign(γ) to the gradients: the subgradient of strength · Σ|γ| (Liu et al. 2017, eq. 1).

    Parameters without a gradient are skipped: they are not part of this step.

    Args:
        gammas: The scales γ, with gradients of the loss.
        strength: Weight of the penalty in the loss.

    Example:
        >>> gamma = nn.Parameter(torch.tensor([2.0, 0.0, -0.5]))
        >>> gamma.grad = torch.zeros(3)
        >>> add_l1_subgradient([gamma], 0.1)
        >>> gamma.grad
        tensor([ 0.1000,  0.0000, -0.1000])
    """
    for gamma in gammas:
        if gamma.grad is not None:
            gamma.grad.add_(torch.sign(gamma), alpha=strength)


@torch.no_grad()
def unit_norms(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """The L2 norm of all trainable weights of each unit of ``group``, on their device; shape (units,)."""
    squares = []
    for member, tensor in _trained(group, tensors):
        rows = tensor.detach().square().movedim(member.dim, 0)
        squares.append(rows.reshape(len(rows), -1).sum(1)[member.index.to(rows.device)].sum(1))
    return reduce(torch.add, squares).sqrt()


@torch.no_grad()
def add_group_lasso_subgradient(
    groups: Iterable[Group], tensors: Mapping[str, Tensor], strength: float, stepped: Collection[int] | None = None
) -> float:
    """Add the subgradient of strength · Σ_groups √n Σ_units ‖w_unit‖₂ to the gradients, with n weights per unit.

    Yuan & Lin 2006, 'Model selection and estimation in regression with grouped variables', over coupled structures as
    in Fang et al. 2023, 'DepGraph'. Parameters without a gradient are skipped: they are not part of this step.

    Args:
        groups: The groups.
        tensors: Tensors of the network by name.
        strength: Weight of the penalty in the loss.
        stepped: Ids of the parameters that the optimizer steps; None for all.

    Returns:
        The value of the penalty, before this step.
    """
    penalty = 0.0
    for group in groups:
        own = _trained(group, tensors)
        if not own:
            continue
        norms = unit_norms(group, tensors)
        weights = sum(tensor.numel() // tensor.shape[member.dim] * member.index.shape[1] for member, tensor in own)
        factor = strength * weights**0.5
        penalty += factor * float(norms.sum())
        scales = factor / norms.clamp_min(torch.finfo(norms.dtype).tiny) * (norms > 0)
        for member, tensor in own:
            if tensor.grad is not None and (stepped is None or id(tensor) in stepped):
                along = torch.zeros(tensor.shape[member.dim], dtype=norms.dtype, device=tensor.device)
                along[member.index.to(tensor.device)] = scales[:, None]
                shape = [-1 if dim == member.dim else 1 for dim in range(tensor.dim())]
                tensor.grad.addcmul_(tensor, along.view(shape).to(tensor.dtype))
    return penalty


def weights_removed_by(plan: Plan, module: nn.Module) -> dict[str, Tensor]:
    """The weights that ``plan`` removes or masks: parameter name -> bool of its shape, True where it is removed.

    Example:
        >>> plan = Plan(keep={"weight": {0: torch.tensor([1]), 1: torch.tensor([0, 2])}})
        >>> weights_removed_by(plan, nn.Linear(3, 2))["weight"]
        tensor([[ True,  True,  True],
                [False,  True, False]])
    """
    found = {}
    for name, parameter in module.named_parameters():
        if name in plan.masks:
            found[name] = ~plan.masks[name].cpu()
        elif is_inside(name, plan.removed_modules):
            found[name] = torch.ones(parameter.shape, dtype=torch.bool)
        elif name in plan.keep:
            kept = torch.ones(parameter.shape, dtype=torch.bool)
            for dim, index in plan.keep[name].items():
                along = torch.zeros(parameter.shape[dim], dtype=torch.bool)
                along[index] = True
                kept &= along.view([-1 if d == dim else 1 for d in range(parameter.dim())])
            found[name] = ~kept
    return found


@torch.no_grad()
def add_l2_gradient(
    selected: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    strength: float,
    stepped: Collection[int] | None = None,
) -> float:
    """Add strength · w to the gradients of selected weights: the gradient of strength / 2 · Σ w².

    Parameters without a gradient are skipped: they are not part of this step.

    Args:
        selected: Parameter name -> bool of its shape, on its device; True where the penalty applies.
        tensors: Tensors of the network by name.
        strength: Weight of the penalty in the loss.
        stepped: Ids of the parameters that the optimizer steps; None for all.

    Returns:
        The value of the penalty on the parameters of this step, before it.
    """
    penalty = 0.0
    for name, mask in selected.items():
        gradient = tensors[name].grad
        if gradient is not None and (stepped is None or id(tensors[name]) in stepped):
            weights = tensors[name].detach() * mask
            gradient.add_(weights, alpha=strength)
            penalty += strength / 2 * float(weights.float().square().sum())
    return penalty


def _trained(group: Group, tensors: Mapping[str, Tensor]) -> list[tuple[Member, Tensor]]:
    found = [(member, tensors.get(member.tensor)) for member in group.members]
    return [(m, tensor) for m, tensor in found if isinstance(tensor, nn.Parameter) and tensor.requires_grad]
