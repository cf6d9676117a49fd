"""Lightning callbacks that prune a network during training, and guard, report and support the pruning."""

import lightning_prune.callbacks.trainer.lightning_packages  # noqa: F401  (before anything else of Lightning's)

# isort: split
from lightning_prune.callbacks.guard.accuracy_guard import AccuracyGuard
from lightning_prune.callbacks.loading import PrunedCheckpoints
from lightning_prune.callbacks.penalties.group_lasso import GroupLasso
from lightning_prune.callbacks.penalties.growing import GrowingPenalty
from lightning_prune.callbacks.penalties.slimming import SlimmingPenalty
from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning
from lightning_prune.callbacks.reporting.logger import SparsityLogger
from lightning_prune.callbacks.reporting.summary import PruningSummary
from lightning_prune.callbacks.retraining.distillation import Distillation
from lightning_prune.callbacks.retraining.finetune_lr import FinetuneLR
from lightning_prune.callbacks.retraining.recalibrate_batchnorm import RecalibrateBatchNorm
from lightning_prune.callbacks.retraining.rewind import Rewind
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
