"""Groups that stay although the scope has them, and what users are told of it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

from torch import distributed

from lightning_prune.coupling import Group
from lightning_prune.coupling.unreached import REACHES_NOT
from lightning_prune.criteria import CannotScoreError, Criterion, Scoring

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


def _speaks() -> bool:
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
