"""Granularity: what is removed, whole channels or single weights."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Literal, get_args

Attention = Literal["head_dims", "heads"]
Ranking = Literal["global", "isomorphic"]
Aggregate = Literal["sum", "mean", "max", "first"]


class Granularity(ABC):  # noqa: B024  (a marker: what a pruner makes of it is decided by its class)
    """Base of all granularities."""


@dataclass(frozen=True)
class Channels(Granularity):
    """Channels are physically removed; the network gets smaller and faster.

    Args:
        round_to: Every group that shrinks keeps a multiple of this many channels (hardware likes 8 or 16): the
            nearest to the width that the budget asks for, at least one multiple. Groups that shrink only together
            reach it together. A group with fewer channels stays as it is, with the reason in ``Report.frozen``.
        min_width: Fewest channels that every group keeps. A group that is not wider stays as it is, with the reason
            in ``Report.frozen``.
        attention: What attention layers lose, where the network allows both: ``"head_dims"`` takes the same number
            of dimensions out of every head, ``"heads"`` takes whole heads.
        ranking: What competes under a budget with ``per_layer=False``. ``"global"``: all groups; criteria bring their
            scores to one scale for it. ``"isomorphic"``: only groups of the same kind, and every kind gives the same
            share of its units (Fang et al. 2024, 'Isomorphic pruning for vision models'), because the scores of unlike
            structures (residual streams, hidden layers, heads) are distributed differently.
        aggregate: How the scores of a unit in each of the coupled tensors become one (the group reduction of Fang et
            al. 2023, 'DepGraph', in their code): their ``"sum"``, ``"mean"`` or ``"max"``, or the ``"first"``, that
            of the layer that makes the channels. ``"sum"`` and ``"mean"`` rank alike where the criterion then brings
            groups to one scale, as those of this package do but for those in units of the loss (``WeightTaylor`` and
            other second moments of gradients).

    Raises:
        ValueError: If ``round_to`` or ``min_width`` is below 1, or another argument is none of its words.

    Example:
        >>> import torch
        >>> from lightning_prune import prune_once
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
        >>> prune_once(net, torch.zeros(1, 4), granularity=Channels(round_to=8)).widths
        {'0.weight': (10, 8)}
    """

    round_to: int = 1
    min_width: int = 1
    attention: Attention = "head_dims"
    ranking: Ranking = "global"
    aggregate: Aggregate = "sum"

    def __post_init__(self) -> None:
        for name in ("round_to", "min_width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Channels {name}={value!r} must be a whole number of at least 1")
        for name, words in (("attention", Attention), ("ranking", Ranking), ("aggregate", Aggregate)):
            value, known = getattr(self, name), get_args(words)
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"Channels {name}={value!r} is not known; use {' or '.join(map(repr, known))}")


@dataclass(frozen=True)
class Weights(Granularity):
    """Single weights are masked with zeros; the shapes stay."""
