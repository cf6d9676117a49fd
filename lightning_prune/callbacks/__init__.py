"""Lightning callbacks: thin shells that decide when."""

from lightning_prune.callbacks.guard import AccuracyGuard
from lightning_prune.callbacks.penalty import SlimmingPenalty
from lightning_prune.callbacks.pruning import IterativePruning

__all__ = ["AccuracyGuard", "IterativePruning", "SlimmingPenalty"]
