"""Try a plan on a copy before the real network is touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.coupling import Coupling, Example, run_on_copy
from lightning_prune.coupling.rules_shape import is_sized
from lightning_prune.coupling.trace import tensors_in
from lightning_prune.plan import Plan, plan_removal
from lightning_prune.surgery import apply_plan


def failing_groups(
    model: nn.Module, example: Example, coupling: Coupling, removed: Mapping[str, Tensor]
) -> dict[str, str]:
    """Which groups cannot be pruned as planned, and the error that the forward pass then raises.

    The exact plan runs on a copy, in eval and in train mode. The outputs must keep their shapes, and every reshape must
    give the shape that the analysis foresees: a ``-1`` beside a number written in the code takes what is left, which
    would run, with channels in the wrong places. On failure the groups at fault are found by bisection.

    Args:
        model: The network; it is not touched.
        example: What its forward receives.
        coupling: Its analysis.
        removed: Group name -> bool tensor (units,), True where the unit goes.
    """
    expected, _ = _shapes(model, example, coupling, Plan())

    def failure(names: list[str]) -> str | None:
        plan = plan_removal({name: removed[name] for name in names}, coupling)
        try:
            found, reshapes = _shapes(model, example, coupling, plan)
        except Exception as error:
            return f"without it the forward pass fails: {str(error).splitlines()[0] if str(error) else error!r}"
        if found != expected:
            return "without it the shapes of the outputs change"
        return _wrong_reshape(coupling, {name: int(removed[name].sum()) for name in names}, reshapes)

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


class _Reshapes(TorchDispatchMode):
    """Notes the shape that every reshape gives."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if is_sized(func):
            self.shapes += [tuple(tensor.shape) for tensor in tensors_in(out)]
        return out


def _wrong_reshape(coupling: Coupling, gone: Mapping[str, int], found: list[tuple[int, ...]]) -> str | None:
    if len(found) != len(coupling.sizes):  # control flow that reads values went another way
        return None
    for dims, shape in zip(coupling.sizes, found, strict=True):
        due = tuple(round(dim.after(gone)) for dim in dims)
        if dims and due != shape:
            return f"without it a reshape gives {shape} instead of {due}: is a number written in the code?"
    return None


def _shapes(
    model: nn.Module, example: Example, coupling: Coupling, plan: Plan
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Shapes of the outputs, and of what every reshape gives, in eval and in train mode."""

    def use(copy: nn.Module, inputs: Example) -> Any:
        apply_plan(copy, plan)
        with _Reshapes() as reshapes:
            outputs = [inputs.run(copy.eval())]
            if coupling.trains:
                outputs.append(inputs.run(copy.train()))
        return [tuple(tensor.shape) for tensor in tensors_in(outputs)], reshapes.shapes

    shapes: tuple[list[tuple[int, ...]], list[tuple[int, ...]]] = run_on_copy(model, example, use, coupling.on_meta)
    return shapes
