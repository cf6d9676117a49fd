"""Arguments: checks of the types that a pruning method takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from lightning_prune.budgets.budget import Budget
from lightning_prune.criteria.criterion import Criterion
from lightning_prune.granularity import Granularity
from lightning_prune.schedules.schedule import Schedule
from lightning_prune.scope import Scope


def check_types(taker: str, **arguments: object) -> None:
    """Check that every argument is an object of the required type.

    Args:
        taker: Name of the function or class that takes the arguments.
        **arguments: Name of the argument -> value.

    Raises:
        ValueError: If it is not; the message names the argument and shows a valid value.
    """
    for name, value in arguments.items():
        kind, like = _KINDS[name]
        if not isinstance(value, kind):
            raise ValueError(f"{taker} {name}={value!r} is not a {kind.__name__}; it takes an object such as {like}")


_KINDS: Mapping[str, tuple[type, str]] = {
    "schedule": (Schedule, "Rounds(start=5, every=5, count=8)"),
    "budget": (Budget, "Params(keep=0.5)"),
    "criterion": (Criterion, "Taylor() or 'taylor'"),
    "granularity": (Granularity, "Channels(), Weights() or Blocks()"),
    "scope": (Scope, "Scope(exclude=['head'])"),
    "model": (nn.Module, "torch.nn.Linear(4, 2)"),
    "calibrate": (Callable, "lambda model: loss(model(x), y).backward()"),  # type: ignore[dict-item]
    "dry_run": (bool, "True"),
}
