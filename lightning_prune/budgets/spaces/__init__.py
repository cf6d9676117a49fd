"""Spaces: the channels, weights and blocks that a budget can choose from, ranked and with their costs."""

from lightning_prune.budgets.spaces.block_space import BlockSpace
from lightning_prune.budgets.spaces.candidates import Candidate
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.dense_reference import DenseReference
from lightning_prune.budgets.spaces.weight_space import Chooser, Counts, WeightSpace

__all__ = ["BlockSpace", "Candidate", "ChannelSpace", "Chooser", "Counts", "DenseReference", "WeightSpace"]
