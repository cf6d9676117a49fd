"""Layers that the example input does not reach, in networks whose values choose layers, such as mixtures of experts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from lightning_prune.coupling.groups import Group

NOT_REACHED = "the example input does not reach"


def shared_with_unreached(
    groups: Mapping[str, Group],
    shapes: Mapping[str, tuple[int, ...]],
    reached: Collection[str],
    lists: Collection[str],
) -> dict[str, str]:
    """Groups whose channels another input may send to layers that the example does not reach, and why they are kept.

    Such layers are entries of a ``ModuleList`` or ``ModuleDict`` without a reached tensor. Their channels are inferred
    from reached entries, which have a tensor of the same name with as many channels. Channels that these share with the
    rest of the network are kept; channels inside an entry may be removed.

    Args:
        groups: All groups.
        shapes: Shapes of all tensors.
        reached: Names of the tensors that some pass uses.
        lists: Names of the lists and dicts of modules.

    Returns:
        Group name -> reason.

    Example:
        >>> import torch
        >>> from lightning_prune.coupling import Member
        >>> def group(name, *tensors):
        ...     return Group(name, tuple(Member(t, d, torch.arange(4)[:, None], False) for t, d in tensors), ())
        >>> groups = {"stem": group("stem", ("stem", 0), ("experts.0.up", 1)), "up": group("up", ("experts.0.up", 0))}
        >>> shapes = {"stem": (4, 3), "experts.0.up": (4, 4), "experts.1.up": (8, 4)}
        >>> shared_with_unreached(groups, shapes, ["stem", "experts.0.up"], ["experts"])
        {'stem': "the example input does not reach 'experts.1.up', which may use these channels as 'experts.0.up' does"}
    """
    counterparts = _counterparts(shapes, reached, lists)
    found = {}
    for name, group in groups.items():
        for member in group.members:
            for entry, other in counterparts.get(member.tensor, ()):
                outside = any(not each.tensor.startswith(f"{entry}.") for each in group.members)
                fits = len(shapes[other]) == len(shapes[member.tensor])
                if outside and fits and shapes[other][member.dim] == shapes[member.tensor][member.dim]:
                    found[name] = f"{NOT_REACHED} {other!r}, which may use these channels as {member.tensor!r} does"
    return found


def _counterparts(
    shapes: Mapping[str, object], reached: Collection[str], lists: Collection[str]
) -> dict[str, list[tuple[str, str]]]:
    """Reached tensor -> (its entry of a list, the tensor of the same name in an unreached entry), for each of these."""
    reached_entries: defaultdict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    used = set()
    for name in sorted(shapes.keys() & set(reached)):
        for parent, entry, rest in _entries(name, lists):
            reached_entries[parent, rest].append((entry, name))
            used.add(entry)
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in sorted(shapes.keys() - set(reached)):
        for parent, entry, rest in _entries(name, lists):
            for other, tensor in reached_entries.get((parent, rest), ()) if entry not in used else ():
                found[tensor].append((other, name))
    return found


def _entries(name: str, lists: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Each list that contains a tensor, the entry of the list, and the name of the tensor inside the entry."""
    parts = name.split(".")
    for depth in range(len(parts) - 1):
        parent = ".".join(parts[:depth])
        if parent in lists:
            yield parent, ".".join(parts[: depth + 1]), ".".join(parts[depth + 1 :])
