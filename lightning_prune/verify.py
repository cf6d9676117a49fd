"""Try a plan on a copy before the real network is touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_prune.coupling import Coupling, Example, run_on_copy
from lightning_prune.coupling.trace import tensors_in
from lightning_prune.plan import Plan, plan_removal
from lightning_prune.surgery import apply_plan


def failing_groups(
    model: nn.Module, example: Example, coupling: Coupling, removed: Mapping[str, Tensor]
) -> dict[str, str]:
    """Which groups cannot be pruned as planned, and the error that the forward pass then raises.

    The exact plan runs on a copy, in eval and in train mode; on failure the groups at fault are found by bisection.

    Args:
        model: The network; it is not touched.
        example: What its forward receives.
        coupling: Its analysis.
        removed: Group name -> bool tensor (units,), True where the unit goes.
    """
    expected = _shapes(model, example, coupling, Plan())

    def failure(names: list[str]) -> str | None:
        plan = plan_removal({name: removed[name] for name in names}, coupling.groups, coupling.shapes)
        try:
            found = _shapes(model, example, coupling, plan)
        except Exception as error:
            return f"without it the forward pass fails: {str(error).splitlines()[0] if str(error) else error!r}"
        return None if found == expected else "without it the shapes of the outputs change"

    return _culprits([name for name, units in removed.items() if units.any()], failure)


def _culprits(names: list[str], failure: Callable[[list[str]], str | None]) -> dict[str, str]:
    """The members of ``names`` without which the rest works together."""
    accepted: list[str] = []
    blamed: dict[str, str] = {}

    def search(part: list[str]) -> None:
        reason = failure([*accepted, *part])
        if reason is None:
            accepted.extend(part)
        elif len(part) == 1:
            blamed[part[0]] = reason
        else:
            search(part[: len(part) // 2])
            search(part[len(part) // 2 :])

    search(names)
    return blamed


def _shapes(model: nn.Module, example: Example, coupling: Coupling, plan: Plan) -> list[Any]:
    def use(copy: nn.Module, inputs: Example) -> list[Any]:
        apply_plan(copy, plan)
        shapes: list[Any] = [[tuple(t.shape) for t in tensors_in(inputs.run(copy.eval()))]]
        if coupling.trains:
            shapes.append([tuple(t.shape) for t in tensors_in(inputs.run(copy.train()))])
        return shapes

    shapes: list[Any] = run_on_copy(model, example, use, coupling.on_meta)
    return shapes
