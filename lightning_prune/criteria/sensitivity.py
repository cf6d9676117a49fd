"""Criterion from the loss of the network without a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_prune.criteria.criterion import Criterion, Scoring
from lightning_prune.network.argument_checks import check_choice, check_integer


@dataclass(frozen=True)
class Sensitivity(Criterion):
    """Increase of the validation loss, or decrease of a metric, when a block is skipped: one evaluation per block.

    In a Trainer, each pruning event evaluates a copy of the LightningModule on the first batches of the first
    validation loader. Metrics and batch norms of the module and the state of the Trainer are unchanged; the memory of a
    second network is needed during the event. In ``prune_once``, the loss is the mean of what ``calibrate=`` returns,
    in eval mode.

    Scores have the shape (blocks,), in the unit of the loss or metric; they are negative for blocks whose removal
    improves the network.

    Args:
        monitor: Name of a metric that validation logs, such as ``"val_acc"``; None for the loss that
            ``validation_step`` returns.
        mode: ``"max"`` if a higher metric is better, ``"min"`` if a lower one is. Ignored for the loss.
        batches: Number of validation batches on each rank, at least 1.

    Raises:
        ValueError: If ``monitor`` is not a name, ``mode`` is neither ``"max"`` nor ``"min"``, or ``batches`` is not an
            integer of at least 1.
    """

    monitor: str | None = None
    mode: Literal["max", "min"] = "max"
    batches: int = 8

    scores_blocks = True
    compares_losses = True

    def __post_init__(self) -> None:
        if self.monitor is not None and not (isinstance(self.monitor, str) and self.monitor):
            raise ValueError(f"Sensitivity monitor={self.monitor!r} must be the name of a metric, such as 'val_acc'")
        check_choice(self, "mode", self.mode, ("max", "min"))
        check_integer(self, "batches", self.batches, minimum=1)

    def score_blocks(self, names: Sequence[str], scoring: Scoring) -> Tensor:
        """Loss without each block minus loss with all; shape (blocks,). Losses that are not finite score highest."""
        drops = torch.stack([scoring.statistics[name] - scoring.statistics[""] for name in names])
        return torch.nan_to_num(drops, nan=torch.inf).float().clamp_max(torch.finfo(torch.float32).max)
