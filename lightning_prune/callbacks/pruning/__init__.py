"""``IterativePruning``, and the events that it decides and carries out."""

from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning

__all__ = ["IterativePruning"]
