"""``IterativePruning`` and its pruning events."""

from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning

__all__ = ["IterativePruning"]
