"""The import path that networks which were pickled as a whole name; the class itself is in ``surgery.passthrough``."""

from lightning_prune.surgery.passthrough import Passthrough

__all__ = ["Passthrough"]
