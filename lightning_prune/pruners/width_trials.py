"""Widths that are tried before anything is cut."""

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
    """Units kept in every group, the ones that go, and the trial of these widths."""

    kept: Mapping[str, int]
    removed: Mapping[str, Tensor]
    trial: DryRunResult


class BreaksError(Exception):
    """Widths that were to be timed break the network: group name -> why it has to stay."""

    def __init__(self, failing: Mapping[str, str]) -> None:
        super().__init__(str(failing))
        self.failing = failing


class Trials:
    """Tries widths, each once: it does not matter to the shapes which units go."""

    def __init__(self) -> None:
        self._last: tuple[Coupling, tuple[tuple[str, int], ...], DryRunResult] | None = None

    def of(self, model: nn.Module, example: Example, coupling: Coupling, removed: Mapping[str, Tensor]) -> DryRunResult:
        """What a copy of ``model`` does without some units of each group."""
        widths = tuple((name, int(units.sum())) for name, units in removed.items())
        if self._last is None or self._last[0] is not coupling or self._last[1] != widths:
            self._last = coupling, widths, try_widths(model, example, coupling, removed)
        return self._last[2]


def sizes(model: nn.Module, coupling: Coupling, plan: Plan, removed: Mapping[str, Tensor]) -> tuple[Size, Size]:
    """What the network costs now, and with the choice carried out."""
    before = after = nonzero_before = nonzero_after = 0
    for name, parameter in model.named_parameters():
        tensor, dims = parameter.detach(), plan.keep.get(name, {})
        left = prod(dims[dim].numel() if dim in dims else size for dim, size in enumerate(tensor.shape))
        nonzero = nonzero_in([tensor])
        before, after, nonzero_before = before + tensor.numel(), after + left, nonzero_before + nonzero
        nonzero_after += left if nonzero == tensor.numel() else nonzero_in([select(tensor, dims)])
    gone = {name: int(units.sum()) for name, units in removed.items()}
    return (
        Size(before, nonzero_before, round(coupling.macs_after({}))),
        Size(after, nonzero_after, round(coupling.macs_after(gone))),
    )
