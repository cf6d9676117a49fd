"""``AccuracyGuard``: evaluates the network before each event, and rolls back to the last accepted network."""

from lightning_prune.callbacks.guard.accuracy_guard import AccuracyGuard
from lightning_prune.callbacks.guard.verdict import Verdict

__all__ = ["AccuracyGuard", "Verdict"]
