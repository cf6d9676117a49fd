"""Weight pruner: scores single weights, or blocks of weights, and masks the lowest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import lcm

import torch
from torch import Tensor, nn

from lightning_prune.budgets.budget import Budget, BudgetError
from lightning_prune.budgets.spaces.weight_space import Chooser, Counts, WeightSpace
from lightning_prune.criteria.criterion import Criterion, Scoring
from lightning_prune.masks.n_of_m import weight_layouts
from lightning_prune.masks.select import lowest_masks
from lightning_prune.masks.weight_blocks import (
    WeightBlock,
    block_means,
    expand_blocks,
    lowest_weight_blocks,
    weights_per_block,
    why_indivisible,
)
from lightning_prune.pruners.mask_pruner import MaskPruner, ScoresOnDemand
from lightning_prune.scope import Scope


class WeightPruner(MaskPruner):
    """Scores single weights, or blocks of weights, and masks the lowest.

    Args:
        criterion: Saliency criterion that scores weights.
        budget: Target size.
        scope: Modules and parameters that may be pruned.
        block: Outputs and inputs of a block; None for single weights.
    """

    def __init__(self, criterion: Criterion, budget: Budget, scope: Scope, block: WeightBlock | None = None) -> None:
        super().__init__(criterion, budget, scope)
        self._block = block
        self._sides: dict[str, WeightBlock] = {}
        if not budget.masks:
            raise ValueError(f"budget {budget} counts what is physically removed; with Weights() use Sparsity or Count")

    def _covered(self, model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
        covered, frozen = super()._covered(model)
        if self._block is not None:
            found = weight_layouts(model)
            reasons = {name: why_indivisible(found.get(name), self._block) for name in covered}
            frozen = {name: reason for name, reason in reasons.items() if reason is not None}
            covered = {name: p for name, p in covered.items() if name not in frozen}
            if not covered:
                multiple = lcm(*(side for side in self._block if side is not None))
                raise BudgetError(
                    f"Weights block={self._block} fits no layer: {dict(list(frozen.items())[:5])}. Use a smaller "
                    f"block; where channels are removed as well, Channels(round_to={multiple})."
                )
            self._sides = {n: self._block if found[n].dim == 1 else self._block[::-1] for n in covered}
        return covered, frozen

    def _check(self, space: WeightSpace, events: int | None) -> None:
        self.budget.check_weights(space, events)
        if self._block is None or self.budget.needs_scores:
            return
        blocks = {name: weights_per_block(shape, self._sides[name]) for name, shape in space.shapes.items()}
        most = {name: size - blocks[name] for name, size in space.sizes.items()}
        counts = self.budget.mask_weights(space, 1.0)
        total = {"": counts} if isinstance(counts, int) else counts
        limits = {"": sum(most.values())} if isinstance(counts, int) else most
        short = next((name for name, count in total.items() if count > limits[name]), None)
        if short is not None:
            size = space.sizes.get(short, sum(space.sizes.values()))
            where = f" of {short!r}" if short else ""
            raise BudgetError(
                f"{self.budget} cannot be met in blocks of {self._block}: one block is kept in every layer, so that at "
                f"most {limits[short] / size:.4f}{where} can be removed. Use smaller blocks or a smaller budget"
            )
        self.budget.check_block_size(max(blocks.values()))

    def _choose(self, space: WeightSpace, scoring: Scoring, budget: Budget, fraction: float) -> Mapping[str, Tensor]:
        masks: Mapping[str, Tensor] = self.masks
        for counts in _parts(space, budget.mask_weights(space, fraction), self.criterion.rounds):
            seen = scoring if masks is self.masks else _masked(scoring, masks)
            masks = space.choose(ScoresOnDemand(self.criterion, seen, list(space.sizes)), masks, counts)
        return masks

    @property
    def _chooser(self) -> Chooser:
        return lowest_masks if self._block is None else self._blocks

    def _blocks(self, scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], counts: Counts) -> dict[str, Tensor]:
        """Masks of whole blocks, by the mean score of each."""
        before: dict[str, Tensor] = {}
        pooled: dict[str, Tensor] = {}
        alive: dict[str, Tensor] = {}
        for name in scores:
            values = scores[name]
            pooled[name] = block_means(values, self._sides[name]).cpu()
            before[name] = masks[name].cpu() if name in masks else torch.ones(values.shape, dtype=torch.bool)
            alive[name] = block_means(before[name].float(), self._sides[name]) > 0
        weights = {name: before[name].numel() // pooled[name].numel() for name in pooled}
        kept = lowest_weight_blocks(pooled, alive, weights, counts)
        return {name: expand_blocks(kept[name], mask.shape, self._sides[name]) & mask for name, mask in before.items()}


def _parts(space: WeightSpace, counts: Mapping[str, int] | int, rounds: int) -> Iterator[Mapping[str, int] | int]:
    """Number of masked weights after each of ``rounds``, all of which keep the same share of the remaining weights."""
    now, sizes = space.masked, space.sizes

    def part(masked: int, size: int, count: int, number: int) -> int:
        kept, last = size - masked, size - count
        return (
            count
            if number == rounds or last <= 0 or kept <= 0
            else size - round(kept * (last / kept) ** (number / rounds))
        )

    for number in range(1, rounds + 1):
        if isinstance(counts, int):
            yield part(sum(now.values()), sum(sizes.values()), counts, number)
        else:
            yield {name: part(now[name], sizes[name], count, number) for name, count in counts.items()}


def _masked(scoring: Scoring, masks: Mapping[str, Tensor]) -> Scoring:
    """The input of the criterion once ``masks`` are applied."""
    tensors = {name: t * masks[name].to(t.device) if name in masks else t for name, t in scoring.tensors.items()}
    return replace(scoring, tensors=tensors, memo={})
