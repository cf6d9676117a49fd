"""Criterion from the change that a block makes to its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_prune.criteria.criterion import SampledCriterion, Scoring, gathered
from lightning_prune.criteria.statistics.activation_averages import COUNT
from lightning_prune.criteria.statistics.block_changes import BlockChanges


@dataclass(frozen=True)
class BlockInfluence(SampledCriterion):
    """Block influence: one minus the cosine similarity between input and output of a block, averaged over the data.

    Men et al. 2024, 'ShortGPT: layers in large language models are more redundant than you expect', eq. 1, over the
    steps since the last event. Tensors of three dimensions are sequences, (batch, token, feature), with one cosine for
    each token as in the paper; of other tensors, each example is one vector.

    Scores have the shape (blocks,) and lie in [0, 2].

    Args:
        every_n_steps: Observe every n-th training batch, at least 1. On observed batches, the input of each block is
            copied until the block returns.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer of at least 1.
    """

    scores_blocks = True

    def statistics(self) -> BlockChanges:
        """Sums of one minus the cosine."""
        return BlockChanges(self.every_n_steps)

    def score_blocks(self, names: Sequence[str], scoring: Scoring) -> Tensor:
        """The means, which are comparable between blocks; shape (blocks,)."""
        pairs = ((name, COUNT + name) for name in names)
        sums = [[gathered(self, key, scoring, "activations") for key in pair] for pair in pairs]
        return torch.stack([total / count for total, count in sums])
