"""``SparsityLogger`` and ``PruningSummary``: logged metrics, tables and figures."""

from lightning_prune.callbacks.reporting.logger import SparsityLogger
from lightning_prune.callbacks.reporting.summary import PruningSummary

__all__ = ["PruningSummary", "SparsityLogger"]
