"""Ranking: the order in which steps are removed, and the classes of groups that are ranked together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import gcd

import torch
from torch import Tensor, nn

from lightning_prune.coupling.groups import Coupling, Group


def rank_steps(
    scores: Sequence[Tensor],
    units: Sequence[int],
    classes: Sequence[str],
    total: Mapping[str, int],
    removed: Mapping[str, int],
) -> tuple[Tensor, Tensor]:
    """Order of removal in which the lowest steps of each class come first and classes lose equal shares.

    Args:
        scores: For each candidate, the scores of its removable steps.
        units: For each candidate, the units removed with one step.
        classes: For each candidate, its class; candidates of one class are ranked together.
        total: Class -> units it had when the network was dense.
        removed: Class -> units of these that are removed already.

    Returns:
        The candidate of each step, and the units removed after it, both of shape (steps,). Between classes with
        equal shares the lower score comes first; between equal scores the earlier candidate.

    Example:
        >>> tensors = [torch.tensor([1.0, 2.0]), torch.tensor([9.0])]  # the second loses 2 units per step
        >>> rank_steps(tensors, [1, 2], ["a", "a"], {"a": 6}, {"a": 0})
        (tensor([0, 0, 1]), tensor([1, 2, 4]))
        >>> rank_steps(tensors, [1, 2], ["a", "b"], {"a": 2, "b": 4}, {"a": 0, "b": 0})
        (tensor([0, 1, 0]), tensor([1, 3, 4]))
    """
    owners = torch.repeat_interleave(torch.tensor([len(values) for values in scores]))
    owners = owners[torch.argsort(torch.cat(list(scores)), stable=True)]
    sizes = torch.tensor(units)
    share = torch.zeros(len(owners), dtype=torch.double)  # of the units of the class, removed after the step
    for label in dict.fromkeys(classes):
        own = torch.tensor([other == label for other in classes])[owners]
        share[own] = (sizes[owners[own]].cumsum(0) + removed[label]).double() / total[label]
    owners = owners[torch.argsort(share, stable=True)]
    return owners, sizes[owners].cumsum(0)


Kind = tuple[tuple[str, str, int, bool, int], ...]


def isomorphism_classes(module: nn.Module, coupling: Coupling, names: Collection[str]) -> dict[str, str]:
    """Group name -> name of the first group of its class.

    Fang et al. 2024, 'Isomorphic pruning for vision models': structures that are isomorphic as labeled graphs, with
    the operations as labels, are ranked in isolation, regardless of widths and kernel sizes. Groups are compared by
    invariants of an isomorphism (``group_kind``), so isomorphic groups are always in one class. A bundle is one
    structure, whose parts are its groups.

    Args:
        module: The network.
        coupling: Its dependency groups.
        names: Names of the groups to classify.
    """
    first: dict[tuple[tuple[int, Kind], ...], str] = {}
    classes = {}
    for quantum in coupling.shrinking_together(names):
        common = gcd(*quantum.values())
        parts = sorted((units // common, group_kind(module, coupling.groups[name])) for name, units in quantum.items())
        label = first.setdefault(tuple(parts), next(iter(quantum)))
        classes.update(dict.fromkeys(quantum, label))
    return {name: classes[name] for name in names}


def group_kind(module: nn.Module, group: Group) -> Kind:
    """Description of the layers of ``group``, independent of its width and the order of registration.

    Returns:
        Sorted, for every tensor: the class of the module that holds it, its name there, the dimension, whether the
        channels are read, and how many indices a unit owns relative to the other tensors.
    """
    common = gcd(*(member.index.shape[1] for member in group.members))
    kind = []
    for member in group.members:
        path, _, leaf = member.tensor.rpartition(".")
        owner = type(module.get_submodule(path))
        indices = member.index.shape[1] // common
        kind.append((f"{owner.__module__}.{owner.__qualname__}", leaf, member.dim, member.reads, indices))
    return tuple(sorted(kind))
