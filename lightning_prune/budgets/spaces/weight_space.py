"""What a budget chooses from: weights, and what they score."""

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
    """The weights that may be masked.

    Attributes:
        sizes: Parameter name -> number of weights.
        masked: Parameter name -> number of weights masked already.
        shapes: Parameter name -> its shape.
        scores: Parameter name -> scores of its shape, which may be made when asked for; empty before the first event.
        masks: Parameter name -> bool mask so far, True where the weight survives; may lack parameters.
        state: What the state dict of the network would be under some masks, for budgets that look at values.
        choose: From scores, masks so far, and counts of masked weights to masks.
        left_out: Name -> why masks do not cover it, for parameters in the scope that are not in ``sizes``.
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
        """The masks under which so many weights are masked, in all or in each parameter."""
        return self.choose(self.scores, self.masks, counts)

    @property
    def maskable(self) -> int:
        """How many can be masked with one left in every parameter."""
        return sum(self.sizes.values()) - len(self.sizes)

    def masked_below(self, threshold: float) -> dict[str, int]:
        """Parameter name -> weights masked where those that score below ``threshold`` go, too; one is left."""
        counts = {}
        for name, size in self.sizes.items():
            hidden = self.scores[name] < threshold
            if name in self.masks:
                hidden |= ~self.masks[name].to(hidden.device)
            counts[name] = min(int(torch.count_nonzero(hidden)), size - 1)
        return counts
