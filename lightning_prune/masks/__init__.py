"""Boolean masks of single weights: selected, held at zero during training, regrown or learned."""

from lightning_prune.masks.enforcer import MaskEnforcer
from lightning_prune.masks.n_of_m import block_mask, fullest_block, kept_in_block, layouts
from lightning_prune.masks.regrowth import Regrowth, exchange
from lightning_prune.masks.select import lowest_masks, pack, unpack
from lightning_prune.masks.supermask import LearnedMasks
from lightning_prune.masks.weight_blocks import WeightBlock, expanded, lowest_weight_blocks, means, misfit, weights_in

__all__ = [
    "LearnedMasks",
    "MaskEnforcer",
    "Regrowth",
    "WeightBlock",
    "block_mask",
    "exchange",
    "expanded",
    "fullest_block",
    "kept_in_block",
    "layouts",
    "lowest_masks",
    "lowest_weight_blocks",
    "means",
    "misfit",
    "pack",
    "unpack",
    "weights_in",
]
