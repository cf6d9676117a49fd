"""Penalties that drive what matters little towards zero."""

from __future__ import annotations

import torch
from torch import nn

from lightning_prune.criteria.batchnorm import batch_norm_scales


def slimming_gammas(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable γ of every batch norm, by qualified name.

    Raises:
        ValueError: If there is none.
    """
    gammas = {name: gamma for name, gamma in batch_norm_scales(module).items() if gamma.requires_grad}
    if not gammas:
        raise ValueError(
            f"{type(module).__name__} has no batch norm with a trainable scale, so slimming has nothing to work on; "
            "rank by Magnitude or Taylor instead"
        )
    return gammas


@torch.no_grad()
def add_l1_subgradient(gammas: list[nn.Parameter], strength: float) -> None:
    """Add strength · sign(γ) to the gradients: the subgradient of strength · Σ|γ| (Liu et al. 2017, eq. 1).

    Parameters without a gradient are left alone: they are not part of this step.

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
