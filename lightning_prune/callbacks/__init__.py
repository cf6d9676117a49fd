"""Lightning callbacks: thin shells that decide when."""

import lightning_prune.callbacks.packages  # noqa: F401  (before anything else of Lightning's)

# isort: split
from lightning_prune.callbacks.distillation import Distillation
from lightning_prune.callbacks.finetune_lr import FinetuneLR
from lightning_prune.callbacks.group_lasso import GroupLasso
from lightning_prune.callbacks.guard import AccuracyGuard
from lightning_prune.callbacks.loading import PrunedCheckpoints
from lightning_prune.callbacks.logger import SparsityLogger
from lightning_prune.callbacks.penalty import SlimmingPenalty
from lightning_prune.callbacks.pruning import IterativePruning
from lightning_prune.callbacks.rewind import Rewind
from lightning_prune.callbacks.summary import PruningSummary

__all__ = [
    "AccuracyGuard",
    "Distillation",
    "FinetuneLR",
    "GroupLasso",
    "IterativePruning",
    "PrunedCheckpoints",
    "PruningSummary",
    "Rewind",
    "SlimmingPenalty",
    "SparsityLogger",
]
