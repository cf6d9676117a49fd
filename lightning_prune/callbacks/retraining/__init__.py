"""Training after a pruning event: rewinding, learning rates, batch-norm statistics, distillation."""

from lightning_prune.callbacks.retraining.distillation import Distillation
from lightning_prune.callbacks.retraining.finetune_lr import FinetuneLR
from lightning_prune.callbacks.retraining.recalibrate_batchnorm import RecalibrateBatchNorm
from lightning_prune.callbacks.retraining.rewind import Rewind

__all__ = ["Distillation", "FinetuneLR", "RecalibrateBatchNorm", "Rewind"]
