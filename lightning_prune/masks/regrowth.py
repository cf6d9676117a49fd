"""Dynamic sparse training: pruned weights are regrown while others are pruned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_prune.masks.select import lowest_masks
from lightning_prune.network.argument_checks import check_flag, check_integer, check_number

By = Literal["gradient", "random"]


@dataclass(frozen=True)
class Regrowth:
    """Drop-and-grow updates of masks: at regular steps, some weights are pruned and as many others regrown.

    In each layer, the surviving weights with the smallest magnitude are pruned, and as many masked weights are regrown,
    so that the sparsity of the layer stays the same. Regrown weights start at zero with an empty optimizer state. They
    have the largest |∂L/∂w| of the latest batches (RigL: Evci et al. 2020, 'Rigging the lottery: making all tickets
    winners', algorithm 1), or are drawn at random (SET: Mocanu et al. 2018, 'Scalable training of artificial neural
    networks with adaptive sparse connectivity inspired by network science'). RigL skips the optimizer step of an
    update; here this step is taken with the new masks.

    Budget and schedule determine the sparsity: ``Constant(0)`` with ``Random()`` and ``ERK`` trains at a constant
    sparsity from the start; with a ``Cubic`` schedule, gradual pruning can regrow pruned weights.

    Args:
        by: Criterion for regrown weights: ``"gradient"`` (RigL) or ``"random"`` (SET).
        share: Share of the surviving weights of a layer that is exchanged in an update, in (0, 1).
        every: Number of optimizer steps between updates, at least 1.
        end: Share of the training, in (0, 1], after which there are no more updates.
        anneal: Whether ``share`` decreases to zero until ``end``, along half a cosine.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> regrowth = Regrowth(share=0.3, end=0.75)
        >>> [round(regrowth.share_at(done), 3) for done in (0, 0.375, 0.75, 1)]
        [0.3, 0.15, 0.0, 0.0]
    """

    by: By = "gradient"
    share: float = 0.3
    every: int = 100
    end: float = 0.75
    anneal: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.by, str) or self.by not in get_args(By):
            raise ValueError(f"Regrowth by={self.by!r} is not known; use 'gradient' (RigL) or 'random' (SET)")
        check_number(self, "share", self.share, above=0, below=1, hint="such as 0.3")
        check_number(self, "end", self.end, above=0, maximum=1, hint="such as 0.75")
        check_integer(self, "every", self.every, minimum=1)
        check_flag(self, "anneal", self.anneal)

    def share_at(self, done: float) -> float:
        """The share that is exchanged after ``done`` of the training, in [0, 1]."""
        if done >= self.end:
            return 0.0
        return self.share * (1 + math.cos(math.pi * done / self.end)) / 2 if self.anneal else self.share


@torch.no_grad()
def exchange(weight: Tensor, promise: Tensor, mask: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Prune the surviving weights with the smallest magnitude, and regrow as many masked weights.

    A weight that was just pruned may be regrown, at zero. Of equal weights, the first is pruned.

    Args:
        weight: The weights.
        promise: Finite scores of the shape of ``weight``; masked weights with the highest scores are regrown.
        mask: Bool mask of the same shape, True where the weight survives.
        share: Share of the surviving weights that is exchanged. At most as many as there are masked weights are
            exchanged, and at least one survives.

    Returns:
        The mask after pruning, and the mask after regrowth.

    Example:
        >>> weight, mask = torch.tensor([3.0, -1.0, 2.0, 0.0, 0.0]), torch.tensor([True, True, True, False, False])
        >>> exchange(weight, torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0]), mask, share=1 / 3)
        (tensor([ True, False,  True, False, False]), tensor([ True, False,  True, False,  True]))
    """
    alive, size = int(torch.count_nonzero(mask)), mask.numel()
    count = min(round(share * alive), size - alive, alive - 1)
    if count < 1:
        return mask, mask
    pruned = lowest_masks({"": weight.abs()}, {"": mask}, size - alive + count)[""]
    most = torch.finfo(torch.float32).max
    scores = promise.float().clamp(max=most / 2).masked_fill(pruned, most)
    return pruned, lowest_masks({"": scores}, {}, size - alive)[""]
