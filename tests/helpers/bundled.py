"""Analyses written by hand."""

from collections.abc import Mapping

import torch

from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.dense_reference import DenseReference
from lightning_prune.coupling import Bundle, Coupling, Group, LinearDim, Member, Passes


def by_hand(
    sizes: Mapping[str, int],
    bundles: tuple[Mapping[str, int], ...] = (),
    channels: Mapping[str, int] | None = None,
    least: Mapping[str, int] | None = None,
) -> Coupling:
    """Groups of so many units, each with a matrix of three columns.

    Parameters: 3 · Σ channels. MACs: (Σ channels)².
    """
    groups, dims, total = {}, {}, {}
    for name, units in sizes.items():
        wide = (channels or {}).get(name, 1)
        index = torch.arange(units * wide).reshape(units, wide)
        groups[name] = Group(name, (Member(name, 0, index, False),), (), min_units=(least or {}).get(name, 1))
        dims[name] = (LinearDim(units * wide, {name: wide}), LinearDim(3, {}))
        total[name] = wide
    width = LinearDim(sum(group.size * total[name] for name, group in groups.items()), total)
    return Coupling(
        groups,
        {},
        {},
        dims,
        ((1, (width, width)),),
        on_meta=False,
        passes=Passes(),
        bundles=tuple(Bundle(bundle, "the code splits one by the other") for bundle in bundles),
    )


def space_of(
    coupling: Coupling, scores: Mapping[str, list[float]], reference: DenseReference | None = None, **settings
):
    values = {name: torch.tensor(given, dtype=torch.float) for name, given in scores.items()}
    return ChannelSpace(coupling, values, DenseReference.of(coupling) if reference is None else reference, **settings)
