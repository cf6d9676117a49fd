"""What `IterativePruning` refuses, and the cures that it names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_prune.budgets import Budget
from lightning_prune.channel_pruner import ChannelPruner
from lightning_prune.criteria import Criterion
from lightning_prune.granularity import Granularity
from lightning_prune.pruner import Pruner
from lightning_prune.schedules import Schedule
from lightning_prune.scope import Scope

_KINDS: Mapping[str, tuple[type, str]] = {
    "schedule": (Schedule, "Rounds(start=5, every=5, count=8)"),
    "budget": (Budget, "Params(keep=0.5)"),
    "criterion": (Criterion, "Taylor() or 'taylor'"),
    "granularity": (Granularity, "Channels() or Weights()"),
    "scope": (Scope, "Scope(exclude=['head'])"),
}


def check_kinds(**arguments: object) -> None:
    """Every argument has to be an object of its kind.

    Raises:
        MisconfigurationException: Names the argument and shows one that would do.
    """
    for name, value in arguments.items():
        kind, like = _KINDS[name]
        if not isinstance(value, kind):
            raise MisconfigurationException(
                f"IterativePruning {name}={value!r} is not a {kind.__name__}; it takes an object such as {like}"
            )


def check_start(pruner: Pruner, schedule: Schedule) -> None:
    """What is gathered from gradients needs a training step before the first event."""
    if pruner.statistics is not None and schedule.start <= 0:
        raise MisconfigurationException(
            f"{pruner.criterion} needs gradients of at least one training step before the first event, but {schedule} "
            "starts at 0; let it start later"
        )


def check_scopes(pruner: Pruner, others: Iterable[Pruner], pl_module: pl.LightningModule) -> None:
    """Two pruners of one kind must not share parameters."""
    own = pruner.scope.parameters(pl_module)
    for other in others:
        shared = sorted(own.keys() & other.scope.parameters(pl_module).keys())
        if shared:
            raise MisconfigurationException(
                f"two IterativePruning callbacks both prune {shared[0]!r} (and {len(shared) - 1} more); give them "
                "disjoint scopes"
            )


def check_groups(pruner: Pruner, others: Iterable[Pruner]) -> None:
    """Two pruners must not rank the same channels, which layers in both of their scopes may write to."""
    for other in others:
        if isinstance(pruner, ChannelPruner) and isinstance(other, ChannelPruner) and pruner.groups & other.groups:
            raise MisconfigurationException(
                f"two IterativePruning callbacks both prune the channels of {min(pruner.groups & other.groups)!r}; "
                "give them disjoint scopes"
            )


def check_gradients(pruner: Pruner) -> None:
    """Gradients have to reach everything that is ranked by them."""
    unseen = [] if pruner.statistics is None else pruner.statistics.unseen()
    if unseen:
        raise MisconfigurationException(
            f"{pruner.criterion} needs gradients of {unseen[0]!r}; none has reached it so far ({len(unseen)} such "
            f"layers). Is it frozen or unused? Exclude it: Scope(exclude=[{unseen[0]!r}])."
        )
