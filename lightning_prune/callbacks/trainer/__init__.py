"""Access to the Trainer for all callbacks: Lightning packages, time, ranks, strategies, example input."""

from lightning_prune.callbacks.trainer.lightning_packages import Callback, MisconfigurationException

__all__ = ["Callback", "MisconfigurationException"]
