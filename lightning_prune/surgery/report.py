"""Report: what one event does, or would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lightning_prune.network.size import Size
from lightning_prune.surgery.plan import Plan


@dataclass(frozen=True)
class Report:
    """One pruning event.

    Attributes:
        plan: What is kept, against the shapes before the event.
        before: What the network cost before the event.
        after: What it costs after the event.
        sparsity: Fraction of the original that is gone after the event, in [0, 1]: of the network's parameters for
            channels and blocks, for masks of the weights in the scope, where what masks cannot cover (``frozen``) does
            not count.
        fraction: How far the schedule has gone, in [0, 1].
        widths: Group or parameter name -> (units or weights before, after); for blocks name -> (1, 1 or 0).
        scores: Group name -> scores of its units before the event, block name -> its score. Empty for masks.
        frozen: Group, tensor or block name -> why nothing in it can be removed.
        inexact: Group name -> why removing is not equal to masking there.
    """

    plan: Plan
    before: Size
    after: Size
    sparsity: float
    fraction: float
    widths: Mapping[str, tuple[int, int]]
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    frozen: Mapping[str, str] = field(default_factory=dict)
    inexact: Mapping[str, str] = field(default_factory=dict)

    @property
    def removes(self) -> bool:
        """Whether anything changes at all."""
        return any(before != after for before, after in self.widths.values())

    def __str__(self) -> str:
        """One line for a log."""
        macs = f", MACs {self.before.macs:,} -> {self.after.macs:,}" if self.plan.shrinks else ""
        nonzero = "nonzero " if self.plan.masks else ""
        before, after = (
            (self.before.nonzero, self.after.nonzero) if self.plan.masks else (self.before.params, self.after.params)
        )
        removed = f", without {', '.join(self.plan.removed_modules)}" if self.plan.removed_modules else ""
        return f"{nonzero}parameters {before:,} -> {after:,}{macs}, sparsity {self.sparsity:.4f}{removed}"
