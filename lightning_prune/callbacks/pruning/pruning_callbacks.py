"""All ``IterativePruning`` callbacks of a Trainer, for callbacks that depend on them."""

from __future__ import annotations

import lightning.pytorch as pl

from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning
from lightning_prune.callbacks.trainer.lightning_packages import Callback, MisconfigurationException
from lightning_prune.callbacks.trainer.listeners import callbacks_of


def pruning_callbacks(trainer: pl.Trainer) -> list[IterativePruning]:
    """The ``IterativePruning`` callbacks, in their order."""
    return callbacks_of(trainer, IterativePruning)


def count_events(trainer: pl.Trainer) -> int:
    """Number of events, of all pruners, that led to the current network; rolled-back events do not count."""
    return sum(pruning.pruner.event for pruning in pruning_callbacks(trainer))


def check_pruning(trainer: pl.Trainer, callback: Callback) -> None:
    """Reject a ``callback`` that has no effect without pruning.

    Raises:
        MisconfigurationException: If the Trainer has no ``IterativePruning``.
    """
    if not pruning_callbacks(trainer):
        raise MisconfigurationException(
            f"{type(callback).__name__} has no effect without pruning; add IterativePruning(...)"
        )
