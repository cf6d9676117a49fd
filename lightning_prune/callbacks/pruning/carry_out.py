"""What surgery has to take along: the DDP wrapper, dropped before it and built anew after it, and averaged copies."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
from torch import Tensor

from lightning_prune.callbacks.trainer.ranks import check_ranks_agree
from lightning_prune.callbacks.trainer.strategies import forget_compiled, unwrapped
from lightning_prune.checkpoint.manifest import track_plan
from lightning_prune.pruners.pruner import Pruner
from lightning_prune.surgery.averaged_copies import apply_to_copies, with_averages
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report


def carry_out(trainer: pl.Trainer, pl_module: pl.LightningModule, pruner: Pruner, report: Report) -> None:
    """Change the network, what optimizers and averages remember of it, and the wrapper around it, on this rank."""
    _take_averages_along(trainer, pl_module, report)
    with unwrapped(trainer):
        track_plan(pl_module, report.plan)
        pruner.apply(pl_module, report, trainer.strategy.optimizers)
        check_ranks_agree(trainer, pl_module, report.plan)  # before DDP hands out the parameters of rank 0
    forget_compiled()


def mask_averages(trainer: pl.Trainer, pl_module: pl.LightningModule, masks: Mapping[str, Tensor]) -> None:
    """Zero in averaged copies, inside the network and outside, what new ``masks`` of its parameters hide."""
    plan = with_averages(Plan(masks=masks), pl_module)
    own = dict(pl_module.named_parameters())
    for name in plan.masks.keys() - masks.keys():
        own[name].data.mul_(plan.masks[name].to(own[name].device))
    apply_to_copies([*trainer.callbacks, *pl_module.modules()], plan, pl_module, track_plan)  # type: ignore[attr-defined]


def _take_averages_along(trainer: pl.Trainer, pl_module: pl.LightningModule, report: Report) -> None:
    """Prune the averaged copies that callbacks and modules keep; the report already plans those inside the network."""
    holders = [*trainer.callbacks, *pl_module.modules()]  # type: ignore[attr-defined]
    apply_to_copies(holders, report.plan, pl_module, track_plan)
