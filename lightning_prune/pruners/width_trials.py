"""Dry runs of widths on a copy of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from lightning_prune.coupling.groups import Coupling
from lightning_prune.network.example_input import Example
from lightning_prune.network.size import Size, nonzero_in
from lightning_prune.surgery.dry_run import DryRunResult, try_widths
from lightning_prune.surgery.plan import Plan, select


@dataclass(frozen=True)
class Choice:
    """Widths that were chosen and tried.

    Attributes:
        kept: Group name -> number of units kept.
        removed: Group name -> bool tensor (units,), True where the unit is removed.
        trial: Result of the dry run with these widths.
    """

    kept: Mapping[str, int]
    removed: Mapping[str, Tensor]
    trial: DryRunResult


class FailingWidthsError(Exception):
    """A network fails with the widths that were to be timed; ``failing`` maps group names to reasons."""

    def __init__(self, failing: Mapping[str, str]) -> None:
        super().__init__(str(failing))
        self.failing = failing


class Trials:
    """Runs copies of a network with fewer units, and caches the last result.

    Shapes depend only on how many units are removed, so equal widths are not tried twice in a row.
    """

    def __init__(self) -> None:
        self._last: tuple[Coupling, tuple[tuple[str, int], ...], DryRunResult] | None = None

    def of(self, model: nn.Module, example: Example, coupling: Coupling, removed: Mapping[str, Tensor]) -> DryRunResult:
        """The dry run of a copy of ``model`` without the units in ``removed``."""
        widths = tuple((name, int(units.sum())) for name, units in removed.items())
        if self._last is None or self._last[0] is not coupling or self._last[1] != widths:
            self._last = coupling, widths, try_widths(model, example, coupling, removed)
        return self._last[2]


def sizes(model: nn.Module, coupling: Coupling, plan: Plan, removed: Mapping[str, Tensor]) -> tuple[Size, Size]:
    """Size of the network as it is, and after ``plan``, which removes the units in ``removed``."""
    before = after = nonzero_before = nonzero_after = 0
    for name, parameter in model.named_parameters():
        tensor, dims = parameter.detach(), plan.keep.get(name, {})
        kept = prod(dims[dim].numel() if dim in dims else size for dim, size in enumerate(tensor.shape))
        nonzero = nonzero_in([tensor])
        before, after, nonzero_before = before + tensor.numel(), after + kept, nonzero_before + nonzero
        nonzero_after += kept if nonzero == tensor.numel() else nonzero_in([select(tensor, dims)])
    counts = {name: int(units.sum()) for name, units in removed.items()}
    return (
        Size(before, nonzero_before, round(coupling.macs_after({}))),
        Size(after, nonzero_after, round(coupling.macs_after(counts))),
    )
