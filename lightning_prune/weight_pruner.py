"""Masking single weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_prune.block_patterns import Block, expanded, lowest_blocks, means, misfit
from lightning_prune.budgets import Budget
from lightning_prune.criteria import Criterion, Scoring
from lightning_prune.mask_pruner import MaskPruner, ScoresOnDemand
from lightning_prune.masks import lowest_masks
from lightning_prune.scope import Scope
from lightning_prune.weight_space import WeightSpace


class WeightPruner(MaskPruner):
    """Masks as many weights as a budget says, wherever they are.

    Args:
        criterion: What matters.
        budget: Until what.
        scope: Where.
        block: Outputs and inputs that go together, None for single weights.
    """

    def __init__(self, criterion: Criterion, budget: Budget, scope: Scope, block: Block | None = None) -> None:
        super().__init__(criterion, budget, scope)
        self._block = block
        if not budget.masks:
            raise ValueError(f"budget {budget} counts what is physically removed; with Weights() use Sparsity or Count")

    def _covered(self, model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
        covered, frozen = super()._covered(model)
        if self._block is not None:
            reasons = {name: misfit(tuple(p.shape), self._block) for name, p in covered.items()}
            frozen = {name: reason for name, reason in reasons.items() if reason is not None}
            covered = {name: p for name, p in covered.items() if name not in frozen}
            if not covered:
                raise ValueError(
                    f"Weights block={self._block} fits no layer: {dict(list(frozen.items())[:5])}. Use a smaller block"
                )
        return covered, frozen

    def _check(self, space: WeightSpace, events: int | None) -> None:
        self.budget.check_weights(space, events)

    def _choose(self, model: nn.Module, space: WeightSpace, scoring: Scoring, fraction: float) -> Mapping[str, Tensor]:
        masks: Mapping[str, Tensor] = self.masks
        for counts in _parts(space, self.budget.mask_weights(space, fraction), self.criterion.rounds):
            seen = scoring if masks is self.masks else _masked(scoring, masks)
            scores = ScoresOnDemand(self.criterion, seen, list(space.sizes))
            masks = lowest_masks(scores, masks, counts) if self._block is None else self._blocks(scores, masks, counts)
        return masks

    def _blocks(
        self, scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], counts: Mapping[str, int] | int
    ) -> dict[str, Tensor]:
        """Masks of whole blocks, by the mean score of each."""
        assert self._block is not None
        shapes: dict[str, torch.Size] = {}
        pooled: dict[str, Tensor] = {}
        alive: dict[str, Tensor] = {}
        for name in scores:
            values = scores[name]
            shapes[name], pooled[name] = values.shape, means(values, self._block).cpu()
            before = masks.get(name, torch.ones(values.shape, dtype=torch.bool))
            alive[name] = means(before.cpu().float(), self._block) > 0
        weights = {name: shapes[name].numel() // pooled[name].numel() for name in pooled}
        kept = lowest_blocks(pooled, alive, weights, counts)
        return {name: expanded(blocks, shapes[name], self._block) for name, blocks in kept.items()}


def _parts(space: WeightSpace, counts: Mapping[str, int] | int, rounds: int) -> Iterator[Mapping[str, int] | int]:
    """How many weights are masked after each of ``rounds`` that leave the same share of what the last has left."""
    now, sizes = space.masked, space.sizes

    def part(masked: int, size: int, count: int, number: int) -> int:
        left, last = size - masked, size - count
        return (
            count
            if number == rounds or last <= 0 or left <= 0
            else size - round(left * (last / left) ** (number / rounds))
        )

    for number in range(1, rounds + 1):
        if isinstance(counts, int):
            yield part(sum(now.values()), sum(sizes.values()), counts, number)
        else:
            yield {name: part(now[name], sizes[name], count, number) for name, count in counts.items()}


def _masked(scoring: Scoring, masks: Mapping[str, Tensor]) -> Scoring:
    """What a criterion may look at once ``masks`` are applied."""
    tensors = {name: t * masks[name].to(t.device) if name in masks else t for name, t in scoring.tensors.items()}
    return replace(scoring, tensors=tensors, memo={})
