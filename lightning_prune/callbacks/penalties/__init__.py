"""Regularizers that prepare a network for pruning: network slimming, group lasso, growing L2 penalties."""

from lightning_prune.callbacks.penalties.group_lasso import GroupLasso
from lightning_prune.callbacks.penalties.growing import GrowingPenalty
from lightning_prune.callbacks.penalties.slimming import SlimmingPenalty

__all__ = ["GroupLasso", "GrowingPenalty", "SlimmingPenalty"]
