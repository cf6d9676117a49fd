"""Report of one pruning event: sizes and widths before and after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lightning_prune.network.size import Size
from lightning_prune.surgery.plan import Plan


@dataclass(frozen=True)
class Report:
    """Report of one pruning event, or of a dry run.

    Attributes:
        plan: What is kept, in the shapes before the event.
        before: Size of the network before the event.
        after: Size of the network after the event.
        sparsity: Fraction of the original that is removed after the event, in [0, 1]. For channels and blocks it is the
            fraction of the network's parameters; for masks the fraction of the weights in the scope, without those that
            cannot be masked (``frozen``).
        fraction: Fraction of the budget that the schedule gives for this event, in [0, 1].
        widths: Group or parameter name -> (number of units or weights before, after); block name -> (1, 1 or 0).
        scores: Group name -> scores of its units before the event, shape (units,); block name -> its score. Empty for
            masks.
        frozen: Name of a group, tensor or block -> reason why nothing in it can be removed.
        inexact: Group name -> reason why removal is not equal to masking.
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
        """Whether the event removes or masks anything."""
        return any(before != after for before, after in self.widths.values())

    def __str__(self) -> str:
        """Sizes and sparsity in one line, for a log."""
        macs = f", MACs {self.before.macs:,} -> {self.after.macs:,}" if self.plan.shrinks else ""
        nonzero = "nonzero " if self.plan.masks else ""
        before, after = (
            (self.before.nonzero, self.after.nonzero) if self.plan.masks else (self.before.params, self.after.params)
        )
        removed = f", without {', '.join(self.plan.removed_modules)}" if self.plan.removed_modules else ""
        return f"{nonzero}parameters {before:,} -> {after:,}{macs}, sparsity {self.sparsity:.4f}{removed}"
