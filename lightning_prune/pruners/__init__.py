"""Pruners, one for each granularity: they analyze, score, choose, try on a copy and report."""

from lightning_prune.pruners.arguments import check_types
from lightning_prune.pruners.block_pruner import BlockPruner
from lightning_prune.pruners.channel_pruner import ChannelPruner
from lightning_prune.pruners.factory import budget_for, make_pruner
from lightning_prune.pruners.mask_pruner import MaskPruner
from lightning_prune.pruners.pruner import Pruner
from lightning_prune.pruners.removable_blocks import Removable
from lightning_prune.pruners.weight_pruner import WeightPruner

__all__ = [
    "BlockPruner",
    "ChannelPruner",
    "MaskPruner",
    "Pruner",
    "Removable",
    "WeightPruner",
    "budget_for",
    "check_types",
    "make_pruner",
]
