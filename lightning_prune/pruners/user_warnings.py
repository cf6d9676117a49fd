"""What users are told before the first event: what stays although it is in the scope, and what does not follow."""

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


def give_notice(
    criterion: Criterion, model: nn.Module, coupling: Coupling, groups: Mapping[str, Group], reasons: Mapping[str, str]
) -> None:
    """Warn of what may surprise, once for all ranks.

    Args:
        criterion: What ranks.
        model: The network.
        coupling: Its groups.
        groups: Those in the scope.
        reasons: Group name -> why it stays; of those in the scope, because ``criterion`` cannot score it.
    """
    warn_of_unscored(criterion, groups, {name: why for name, why in reasons.items() if name in groups})
    for notice in (_unreached(coupling.frozen), *_copies(model, groups)):
        _warn(notice)


def warn_of_unscored(criterion: Criterion, groups: Collection[str], reasons: Mapping[str, str]) -> None:
    """Warn that some of ``groups`` stay, name -> why, because ``criterion`` cannot score them; once for all ranks."""
    if not reasons:
        return
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons.items():
        by_reason.setdefault(why, []).append(name)
    parts = "; ".join(f"{_some(names)}: {why}" for why, names in by_reason.items())
    _warn(
        f"{criterion} cannot score {len(reasons)} of the {len(groups)} groups of channels in the scope; these stay as "
        f"they are ({parts}). Magnitude() scores every group."
    )


def _unreached(frozen: Mapping[str, str]) -> str:
    reasons = {name: why for name, why in frozen.items() if why.startswith(NOT_REACHED)}
    if not reasons:
        return ""
    return (
        f"{_some(list(reasons))} cannot lose channels: {next(iter(reasons.values()))}. Values may decide which layers "
        "run here: give more examples (in a Trainer as `example_input_array`), or take out of the network what never "
        "runs."
    )


def _copies(module: nn.Module, groups: Mapping[str, Group]) -> list[str]:
    """Of frozen copies that training may want to average."""
    made = {member.tensor for group in groups.values() for member in group.members}
    return [
        f"{copy!r} is a frozen copy of {source!r} and keeps its size when that is pruned. This is right for a teacher "
        f"that only gives targets; one that training averages from {source!r} has to be a "
        "torch.optim.swa_utils.AveragedModel, which follows."
        for copy, source in frozen_copies(module).items()
        if any(is_inside(tensor, [source]) for tensor in made)
    ]


def _warn(notice: str) -> None:
    silent = distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0
    if notice and not silent:
        warnings.warn(notice, stacklevel=4)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
