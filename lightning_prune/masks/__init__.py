"""Boolean masks of single weights: their selection, enforcement during training, regrowth and learning."""

from lightning_prune.masks.enforcer import MaskEnforcer
from lightning_prune.masks.n_of_m import fullest_block, kept_in_block, nm_mask, weight_layouts
from lightning_prune.masks.regrowth import Regrowth, exchange
from lightning_prune.masks.select import lowest_masks, pack, unpack
from lightning_prune.masks.supermask import LearnedMasks
from lightning_prune.masks.weight_blocks import (
    WeightBlock,
    block_means,
    expand_blocks,
    lowest_weight_blocks,
    weights_per_block,
    why_indivisible,
)

__all__ = [
    "LearnedMasks",
    "MaskEnforcer",
    "Regrowth",
    "WeightBlock",
    "block_means",
    "exchange",
    "expand_blocks",
    "fullest_block",
    "kept_in_block",
    "lowest_masks",
    "lowest_weight_blocks",
    "nm_mask",
    "pack",
    "unpack",
    "weight_layouts",
    "weights_per_block",
    "why_indivisible",
]
