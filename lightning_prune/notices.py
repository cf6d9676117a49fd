"""What users are told before the first event: what stays although it is in the scope, and what does not follow."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

from torch import distributed, nn

from lightning_prune.averaged import frozen_copies
from lightning_prune.coupling import Group
from lightning_prune.coupling.unreached import REACHES_NOT
from lightning_prune.criteria import CannotScoreError, Criterion, Scoring
from lightning_prune.plan import is_inside

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


def warn_of_unscored(criterion: Criterion, groups: Collection[str], reasons: Mapping[str, str]) -> None:
    """Say which of ``groups`` stay as they are, and why, once for all ranks.

    Args:
        criterion: What cannot score them.
        groups: All groups in the scope.
        reasons: Group name -> why, as ``unscored`` returns it.
    """
    if not reasons or not _speaks():
        return
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons.items():
        by_reason.setdefault(why, []).append(name)
    parts = "; ".join(f"{_some(names)}: {why}" for why, names in by_reason.items())
    warnings.warn(
        f"{criterion} cannot score {len(reasons)} of the {len(groups)} groups of channels in the scope; these stay as "
        f"they are ({parts}). Magnitude() scores every group.",
        stacklevel=3,
    )


def warn_of_unreached(frozen: Mapping[str, str]) -> None:
    """Say which groups stay because the example input does not reach all layers, once for all ranks."""
    reasons = {name: why for name, why in frozen.items() if why.startswith(REACHES_NOT)}
    if reasons and _speaks():
        warnings.warn(
            f"{_some(list(reasons))} cannot lose channels: {next(iter(reasons.values()))}. Values decide which layers "
            "this network runs: give it more examples (in a Trainer as `example_input_array`).",
            stacklevel=3,
        )


def warn_of_copies(module: nn.Module, groups: Mapping[str, Group]) -> None:
    """Say which frozen copies will keep their sizes, once for all ranks: training may want to average them."""
    if not _speaks():
        return
    made = {member.tensor for group in groups.values() for member in group.members}
    for copy, source in frozen_copies(module).items():
        if any(is_inside(tensor, [source]) for tensor in made):
            warnings.warn(
                f"{copy!r} is a frozen copy of {source!r} and keeps its size when that is pruned. This is right for a "
                f"teacher that only gives targets; one that training averages from {source!r} has to be a "
                "torch.optim.swa_utils.AveragedModel, which follows.",
                stacklevel=3,
            )


def _speaks() -> bool:
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
