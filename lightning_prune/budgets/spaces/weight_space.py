"""Weight space: the weights that a budget can mask, with their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_prune.budgets.spaces.channel_space import State
from lightning_prune.masks.select import lowest_masks

Counts = Mapping[str, int] | int
Chooser = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Counts], Mapping[str, Tensor]]


@dataclass(frozen=True)
class WeightSpace:
    """The weights that a budget can mask, with their scores.

    Attributes:
        sizes: Parameter name -> number of weights.
        masked: Parameter name -> number of weights that are masked already.
        shapes: Parameter name -> shape.
        scores: Parameter name -> scores of its shape, possibly computed on access; empty before the first event.
        masks: Parameter name -> present bool mask, True where the weight is kept; parameters without mask are missing.
        state: Masks -> state dict of the network with these masks, for budgets that depend on values.
        choose: Scores, present masks and numbers of masked weights -> masks.
        left_out: Name -> why it is not masked, for parameters in the scope that are not in ``sizes``.
    """

    sizes: Mapping[str, int]
    masked: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    state: State = dict
    choose: Chooser = lowest_masks
    left_out: Mapping[str, str] = field(default_factory=dict)

    def lowest(self, counts: Counts) -> Mapping[str, Tensor]:
        """Masks of the lowest-scored weights, for a total number of masked weights or one for each parameter."""
        return self.choose(self.scores, self.masks, counts)

    @property
    def maskable(self) -> int:
        """Number of weights that can be masked, with one kept in every parameter."""
        return sum(self.sizes.values()) - len(self.sizes)

    def masked_below(self, threshold: float) -> dict[str, int]:
        """Parameter name -> number of masked weights, with those that score below ``threshold``; one is kept."""
        counts = {}
        for name, size in self.sizes.items():
            hidden = self.scores[name] < threshold
            if name in self.masks:
                hidden |= ~self.masks[name].to(hidden.device)
            counts[name] = min(int(torch.count_nonzero(hidden)), size - 1)
        return counts
