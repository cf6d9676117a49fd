"""Lightning callbacks: thin shells that decide when."""

import lightning_prune.callbacks.packages  # noqa: F401  (before anything else of Lightning's)

# isort: split
from lightning_prune.callbacks.distillation import Distillation
from lightning_prune.callbacks.finetune_lr import FinetuneLR
from lightning_prune.callbacks.group_lasso import GroupLasso
from lightning_prune.callbacks.growing import GrowingPenalty
from lightning_prune.callbacks.guard import AccuracyGuard
from lightning_prune.callbacks.loading import PrunedCheckpoints
from lightning_prune.callbacks.logger import SparsityLogger
from lightning_prune.callbacks.penalty import SlimmingPenalty
from lightning_prune.callbacks.pruning import IterativePruning
from lightning_prune.callbacks.recalibrate import RecalibrateBatchNorm
from lightning_prune.callbacks.rewind import Rewind
from lightning_prune.callbacks.summary import PruningSummary
from lightning_prune.callbacks.supermask import Supermask

__all__ = [
    "AccuracyGuard",
    "Distillation",
    "FinetuneLR",
    "GroupLasso",
    "GrowingPenalty",
    "IterativePruning",
    "PrunedCheckpoints",
    "PruningSummary",
    "RecalibrateBatchNorm",
    "Rewind",
    "SlimmingPenalty",
    "SparsityLogger",
    "Supermask",
]
