"""What is lost when a block is skipped."""

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
    """How much worse the network is without the block, measured: one evaluation for each block that could go.

    In a Trainer, at each event, on the first batches of the (first) validation loader, with a copy of the
    LightningModule: neither its metrics nor its batch norms nor the Trainer notice, and the memory of a second network
    is needed for that moment. In ``prune_once`` by the mean loss that ``calibrate=`` returns, in eval mode.

    Args:
        monitor: Name of a metric that validation logs, such as ``"val_acc"``; by default the loss that
            ``validation_step`` returns.
        mode: ``"max"`` if a higher metric is better, ``"min"`` if a lower one is. A loss is always ``"min"``.
        batches: How many validation batches are looked at (on each rank), at least 1.

    Raises:
        ValueError: If ``monitor`` is no name, ``mode`` none of its words, or ``batches`` not a whole number of at
            least 1.
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
        """The loss without the block minus that with all; a block without which there is no finite loss goes last."""
        drops = torch.stack([scoring.statistics[name] - scoring.statistics[""] for name in names])
        return torch.nan_to_num(drops, nan=torch.inf).float().clamp_max(torch.finfo(torch.float32).max)
