"""Pruning of the matrices of the small network, and the scores that it is decided by."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_prune import IterativePruning, Scope, Weights
from lightning_prune.budgets import Sparsity
from lightning_prune.criteria import Criterion
from lightning_prune.schedules import Constant

MATRICES = Scope(include=["net.0.weight", "net.3.weight", "net.8.weight"])


NAMES = MATRICES.include


def masking(criterion: Criterion, schedule: Any = None, scope: Scope = MATRICES) -> IterativePruning:
    return IterativePruning(schedule or Constant(1), Sparsity(0.5), criterion, Weights(), scope)


class Scores(Callback):
    """The scores of the weights, and the statistics, when an event is due."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.totals: dict[str, Tensor] = {}

    def on_before_prune(self, trainer: Trainer, pl_module: LightningModule, pruning: IterativePruning) -> None:
        pruner = pruning.pruner
        scoring = pruner.scoring(pl_module, pruning.example)
        self.totals = {name: total.clone() for name, total in scoring.statistics.items()}
        if pruner.criterion.scores_weights:
            self.weights = {name: pruner.criterion.score_weights(name, scoring) for name in NAMES}
