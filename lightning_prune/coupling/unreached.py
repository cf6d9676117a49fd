"""Layers that the example input does not reach, in networks where values decide on the way, such as experts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from lightning_prune.coupling.groups import Group

REACHES_NOT = "the example input does not reach"
_Place = tuple[tuple[str, ...], tuple[str, ...]]  # what stands before and after one part of a name


def shared_with_unreached(
    groups: Mapping[str, Group], shapes: Mapping[str, tuple[int, ...]], unreached: Collection[str]
) -> dict[str, str]:
    """Groups whose channels another input may send to layers that the example does not reach, and why they stay.

    Which channels those layers use is known from their siblings: modules beside them with a tensor of the same name,
    and as many channels there. What a sibling shares with the rest of the network, they share; what it has for itself
    may go.

    Args:
        groups: All groups.
        shapes: Shapes of all tensors.
        unreached: Names of the parameters that no pass uses.

    Returns:
        Group name -> reason.

    Example:
        >>> import torch
        >>> from lightning_prune.coupling import Member
        >>> def group(name, *tensors):
        ...     return Group(name, tuple(Member(t, d, torch.arange(4)[:, None], False) for t, d in tensors), ())
        >>> groups = {"stem": group("stem", ("stem", 0), ("experts.0.up", 1)), "up": group("up", ("experts.0.up", 0))}
        >>> shapes = {"stem": (4, 3), "experts.0.up": (4, 4), "experts.1.up": (8, 4)}
        >>> shared_with_unreached(groups, shapes, ["experts.1.up"])
        {'stem': "the example input does not reach 'experts.1.up', which may use these channels as 'experts.0.up' does"}
    """
    siblings = _siblings(shapes, unreached)
    found = {}
    for name, group in groups.items():
        for member in group.members:
            for module, other in siblings.get(member.tensor, ()):
                outside = any(not each.tensor.startswith(f"{module}.") for each in group.members)
                if outside and shapes[other][member.dim] == shapes[member.tensor][member.dim]:
                    found[name] = f"{REACHES_NOT} {other!r}, which may use these channels as {member.tensor!r} does"
    return found


def _siblings(shapes: Mapping[str, tuple[int, ...]], unreached: Collection[str]) -> dict[str, list[tuple[str, str]]]:
    """Reached tensor -> (the module that is a sibling of an unreached one, the tensor there) for each of these."""
    beside: defaultdict[tuple[_Place, int], list[str]] = defaultdict(list)
    for name in sorted(shapes.keys() - unreached):
        for _, place in _places(name):
            beside[place, len(shapes[name])].append(name)
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in sorted(unreached):
        for depth, place in _places(name):
            for sibling in beside.get((place, len(shapes[name])), ()):
                found[sibling].append((".".join(sibling.split(".")[: depth + 1]), name))
    return found


def _places(name: str) -> list[tuple[int, _Place]]:
    """For each module on the way to a tensor how deep it is, and the name without its own part."""
    parts = tuple(name.split("."))
    return [(depth, (parts[:depth], parts[depth + 1 :])) for depth in range(len(parts) - 1)]
