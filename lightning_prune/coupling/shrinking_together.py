"""Groups that shrink only together."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lightning_prune.coupling.groups import Coupling


def shrinking_together(coupling: Coupling, names: Collection[str]) -> list[dict[str, int]]:
    """What can shrink by itself: every bundle, and every group that is in none.

    Args:
        coupling: The network's groups and bundles.
        names: The groups to take, of a bundle all or none.

    Returns:
        For each, group name -> units that it gives up with every step, in the order of ``names``.

    Raises:
        ValueError: If ``names`` has only a part of a bundle, which could not shrink.

    Example:
        >>> from lightning_prune.coupling import Bundle
        >>> tied = Bundle({"stream": 12, "heads": 1}, "nn.MultiheadAttention splits the stream into heads")
        >>> shrinking_together(Coupling({}, {}, {}, {}, (), False, True, bundles=(tied,)), ["stream", "fc", "heads"])
        [{'stream': 12, 'heads': 1}, {'fc': 1}]
    """
    bundle_of = {name: bundle for bundle in coupling.bundles for name in bundle.quantum}
    parts: list[dict[str, int]] = []
    taken: set[str] = set()
    for name in names:
        if name in taken:
            continue
        quantum = dict(bundle_of[name].quantum) if name in bundle_of else {name: 1}
        missing = sorted(quantum.keys() - set(names))
        if missing:
            raise ValueError(f"{name!r} shrinks only together with {missing[0]!r}, which is not among {list(names)}")
        parts.append(quantum)
        taken.update(quantum)
    return parts


def stay_together(coupling: Coupling, reasons: Mapping[str, str]) -> dict[str, str]:
    """Why groups must stay, with those added that shrink only together with one of them.

    Args:
        coupling: The network's groups and bundles.
        reasons: Group name -> why it must stay. Groups that ``coupling`` no longer has must stay, too.
    """
    found = dict(reasons)
    for bundle in coupling.bundles:
        fixed = [name for name in bundle.quantum if name in reasons or name not in coupling.groups]
        if not fixed:
            continue
        why = reasons.get(fixed[0], coupling.frozen.get(fixed[0], "it has no channels that can go"))
        for name in bundle.quantum.keys() - set(fixed):
            found[name] = f"shrinks only together with {fixed[0]!r} ({bundle.reason}), which must stay: {why}"
    return found
