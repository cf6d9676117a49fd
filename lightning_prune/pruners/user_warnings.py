"""Warnings before the first event: channels in the scope that cannot be pruned, and copies that do not follow."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

from torch import distributed, nn

from lightning_prune.coupling.grouping.unreached import NOT_REACHED
from lightning_prune.coupling.groups import Coupling, Group
from lightning_prune.criteria.criterion import CannotScoreError, Criterion, Scoring
from lightning_prune.network.averages import frozen_copies
from lightning_prune.network.names import is_inside

_SHOWN = 3


def unscored(criterion: Criterion, groups: Mapping[str, Group], scoring: Scoring) -> dict[str, str]:
    """Group name -> why ``criterion`` cannot score it, for those of ``groups`` where it cannot."""
    reasons = {}
    for name, group in groups.items():
        try:
            criterion.check(group, scoring)
        except CannotScoreError as error:
            reasons[name] = str(error)
    return reasons


def warn_before_pruning(
    criterion: Criterion, model: nn.Module, coupling: Coupling, groups: Mapping[str, Group], reasons: Mapping[str, str]
) -> None:
    """Warn of channels that cannot be pruned and of frozen copies, once for all ranks.

    Args:
        criterion: The saliency criterion.
        model: The network.
        coupling: Its dependency groups.
        groups: Group name -> group, of those in the scope.
        reasons: Group name -> why it is not pruned; for groups in the scope, why ``criterion`` cannot score it.
    """
    warn_of_unscored(criterion, groups, {name: why for name, why in reasons.items() if name in groups})
    for message in (_unreached(coupling.frozen), *_copies(model, groups)):
        _warn(message)


def warn_of_unscored(criterion: Criterion, groups: Collection[str], reasons: Mapping[str, str]) -> None:
    """Warn of ``groups`` that ``criterion`` cannot score, once for all ranks.

    Args:
        criterion: The saliency criterion.
        groups: Names of the groups in the scope.
        reasons: Group name -> why it cannot be scored.
    """
    if not reasons:
        return
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons.items():
        by_reason.setdefault(why, []).append(name)
    parts = "; ".join(f"{_some(names)}: {why}" for why, names in by_reason.items())
    _warn(
        f"{criterion} cannot score {len(reasons)} of the {len(groups)} groups of channels in the scope; they are not "
        f"pruned ({parts}). Magnitude() scores every group."
    )


def _unreached(frozen: Mapping[str, str]) -> str:
    reasons = {name: why for name, why in frozen.items() if why.startswith(NOT_REACHED)}
    if not reasons:
        return ""
    return (
        f"{_some(list(reasons))} cannot lose channels: {next(iter(reasons.values()))}. If values decide which layers "
        "run, give more examples (in a Trainer as `example_input_array`), or remove layers that never run."
    )


def _copies(module: nn.Module, groups: Mapping[str, Group]) -> list[str]:
    """Warnings of frozen copies, which may be meant as averaged models."""
    pruned = {member.tensor for group in groups.values() for member in group.members}
    return [
        f"{copy!r} is a frozen copy of {source!r} and keeps its size when {source!r} is pruned. This is right for a "
        "teacher that only provides targets; a copy that is updated as an average of the weights must be a "
        "torch.optim.swa_utils.AveragedModel, which is pruned with its source."
        for copy, source in frozen_copies(module).items()
        if any(is_inside(tensor, [source]) for tensor in pruned)
    ]


def _warn(message: str) -> None:
    """Warn on the first rank, unless ``message`` is empty."""
    silent = distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0
    if message and not silent:
        warnings.warn(message, stacklevel=4)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
