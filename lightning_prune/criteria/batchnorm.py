"""The scale of batch norms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_prune.coupling import Group
from lightning_prune.criteria.base import CannotScoreError, Criterion, Scoring, gather_units


@dataclass(frozen=True)
class BatchNormScale(Criterion):
    """|γ| of the batch norms behind a channel, averaged where there are several.

    Liu et al. 2017, 'Learning efficient convolutional networks through network slimming'. Train with
    ``SlimmingPenalty`` so that the γ of channels that matter little go to zero. Channels without a batch norm stay.
    """

    scores_channels = True

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some batch norm must stand behind the channels."""
        if not any(member.tensor in batch_norm_scales(scoring.module) for member in group.members):
            raise CannotScoreError("no batch norm with a scale stands behind these channels")

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """Mean |γ| of each unit."""
        gammas = batch_norm_scales(scoring.module)
        scales = []
        for member in group.members:
            if member.tensor in gammas:
                gamma = gammas[member.tensor].detach().float().abs()
                scales.append(gather_units(gamma, member.index).cpu() / member.index.shape[1])
        return torch.stack(scales).mean(0)


def batch_norm_scales(module: nn.Module) -> dict[str, nn.Parameter]:
    """The γ of every batch norm of ``module`` that has one, by qualified name."""
    return {
        f"{name}.weight" if name else "weight": child.weight
        for name, child in module.named_modules()
        if isinstance(child, _NormBase) and isinstance(child.weight, nn.Parameter)
    }
