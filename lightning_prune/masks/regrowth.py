"""Dynamic sparse training: masked weights come back where others go."""

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
    """Every so often some surviving weights go, and as many others come back, so that each layer keeps its sparsity.

    In each layer the weights nearest to zero go. What comes back begins at zero, with nothing that the optimizer
    remembers: by the largest |∂L/∂w| of the batches just seen (RigL: Evci et al. 2020, 'Rigging the lottery', algorithm
    1), or at random (SET: Mocanu et al. 2018, 'Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science'). RigL leaves out the optimizer step at which it exchanges; here that step
    is taken, by the new weights.

    How many weights survive is for the budget and the schedule to say: ``Constant(0)`` with ``Random()`` and ``ERK``
    is training at one sparsity from the start, a ``Cubic`` schedule pruning that can take back what it did.

    Args:
        by: What decides which masked weights come back: ``"gradient"`` or ``"random"``.
        share: Share of the surviving weights of a layer that is exchanged, in (0, 1).
        every: Optimizer steps from one exchange to the next.
        end: Share of the training, in (0, 1], after which nothing is exchanged any more.
        anneal: Whether ``share`` falls to zero until then, on half a cosine.

    Raises:
        ValueError: If an argument is none of its words, or outside its range.

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
        """The share that is exchanged when ``done`` of the training, in [0, 1], is over."""
        if done >= self.end:
            return 0.0
        return self.share * (1 + math.cos(math.pi * done / self.end)) / 2 if self.anneal else self.share


@torch.no_grad()
def exchange(weight: Tensor, promise: Tensor, mask: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """What is left of ``mask`` once the weights nearest to zero have gone, and the mask with others in their place.

    What has just gone may come back, at zero. Ties go to the first weight.

    Args:
        weight: The weights.
        promise: What speaks for each of them to come back, finite, of the same shape.
        mask: Bool, True where the weight survives.
        share: Of the survivors that are exchanged; no more than there are masked weights, and one stays.

    Example:
        >>> weight, mask = torch.tensor([3.0, -1.0, 2.0, 0.0, 0.0]), torch.tensor([True, True, True, False, False])
        >>> exchange(weight, torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0]), mask, share=1 / 3)
        (tensor([ True, False,  True, False, False]), tensor([ True, False,  True, False,  True]))
    """
    alive, size = int(torch.count_nonzero(mask)), mask.numel()
    count = min(round(share * alive), size - alive, alive - 1)
    if count < 1:
        return mask, mask
    left = lowest_masks({"": weight.abs()}, {"": mask}, size - alive + count)[""]
    most = torch.finfo(torch.float32).max
    wanted = promise.float().clamp(max=most / 2).masked_fill(left, most)
    return left, lowest_masks({"": wanted}, {}, size - alive)[""]
