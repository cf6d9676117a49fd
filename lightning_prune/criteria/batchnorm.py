"""The scale of batch norms."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.criterion import CannotScoreError, Criterion, Scoring, combine, gather_units


@dataclass(frozen=True)
class BatchNormScale(Criterion):
    """|γ| of the batch norms behind a channel, averaged where there are several.

    Liu et al. 2017, 'Learning efficient convolutional networks through network slimming'. Train with
    ``SlimmingPenalty`` so that the γ of channels that matter little go to zero. Channels without a batch norm stay.

    Groups are not scaled: behind a batch norm all channels have one scale, and a threshold over all γ of the network
    is what the paper prunes by (section 3). So with ``Channels(aggregate="sum")`` several norms are averaged, too;
    ``"max"`` and ``"first"`` take the largest γ and that of the norm that stands first.
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
        return combine(scales, "mean" if scoring.aggregate == "sum" else scoring.aggregate)


def batch_norm_scales(module: nn.Module) -> dict[str, nn.Parameter]:
    """The γ of every batch norm of ``module`` that has one, by qualified name."""
    return {
        f"{name}.weight" if name else "weight": child.weight
        for name, child in module.named_modules()
        if isinstance(child, _NormBase) and isinstance(child.weight, nn.Parameter)
    }
