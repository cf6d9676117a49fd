"""Criterion from the scales of batch norms."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.criterion import CannotScoreError, Criterion, Scoring, combine, gather_units


@dataclass(frozen=True)
class BatchNormScale(Criterion):
    """Absolute scale |γ| of the batch norm that follows a channel, averaged where several follow.

    Liu et al. 2017, 'Learning efficient convolutional networks through network slimming'. Train with
    ``SlimmingPenalty``, which drives the γ of unimportant channels to zero. Channels without a batch norm are kept.

    Scores have the shape (units,) and are not normalized by group: after a batch norm all channels have the same scale,
    and the paper prunes by a threshold over all γ of the network (section 3). Several norms are therefore averaged with
    ``Channels(aggregate="sum")`` as well; ``"max"`` takes the largest γ, ``"first"`` that of the first norm.
    """

    scores_channels = True

    def check(self, group: Group, scoring: Scoring) -> None:
        """Some batch norm with a scale must follow the channels."""
        if not any(member.tensor in batch_norm_scales(scoring.module) for member in group.members):
            raise CannotScoreError("no batch norm with a scale follows these channels")

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """Mean |γ| of each unit; shape (units,)."""
        gammas = batch_norm_scales(scoring.module)
        scales = []
        for member in group.members:
            if member.tensor in gammas:
                gamma = gammas[member.tensor].detach().float().abs()
                scales.append(gather_units(gamma, member.index).cpu() / member.index.shape[1])
        return combine(scales, "mean" if scoring.aggregate == "sum" else scoring.aggregate)


def batch_norm_scales(module: nn.Module) -> dict[str, nn.Parameter]:
    """The scale γ of every batch norm of ``module``, by qualified name; norms without a scale are left out."""
    return {
        f"{name}.weight" if name else "weight": child.weight
        for name, child in module.named_modules()
        if isinstance(child, _NormBase) and isinstance(child.weight, nn.Parameter)
    }
