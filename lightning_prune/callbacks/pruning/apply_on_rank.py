"""Application of an event on one rank: to the network, its optimizers, its averaged copies and its DDP wrapper."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
from torch import Tensor

from lightning_prune.callbacks.trainer.ranks import check_ranks_agree
from lightning_prune.callbacks.trainer.strategies import reset_compiled, unwrapped
from lightning_prune.checkpoint.manifest import track_plan
from lightning_prune.pruners.pruner import Pruner
from lightning_prune.surgery.averaged_copies import apply_to_copies, with_averages
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report


def apply_on_rank(trainer: pl.Trainer, pl_module: pl.LightningModule, pruner: Pruner, report: Report) -> None:
    """Apply the plan of ``report`` to the network, its optimizers and its averaged copies, and rebuild its wrapper."""
    _apply_to_averages(trainer, pl_module, report.plan)
    with unwrapped(trainer):
        track_plan(pl_module, report.plan)
        pruner.apply(pl_module, report, trainer.strategy.optimizers)
        check_ranks_agree(trainer, pl_module, report.plan)  # before DDP broadcasts the parameters of rank 0
    reset_compiled()


def mask_averages(trainer: pl.Trainer, pl_module: pl.LightningModule, masks: Mapping[str, Tensor]) -> None:
    """Apply new ``masks`` of the network's parameters to its averaged copies, inside the network and outside."""
    plan = with_averages(Plan(masks=masks), pl_module)
    own = dict(pl_module.named_parameters())
    for name in plan.masks.keys() - masks.keys():
        own[name].data.mul_(plan.masks[name].to(own[name].device))
    _apply_to_averages(trainer, pl_module, plan)


def _apply_to_averages(trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan) -> None:
    """Apply ``plan`` to the averaged copies that callbacks and modules keep."""
    holders = [*trainer.callbacks, *pl_module.modules()]  # type: ignore[attr-defined]
    apply_to_copies(holders, plan, pl_module, track_plan)
