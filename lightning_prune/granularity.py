"""Granularity: what is removed, whole channels, whole blocks or single weights."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_prune.masks.regrowth import Regrowth

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
            of dimensions out of every head, ``"heads"`` takes whole heads; an only head stays,
            if ``forward`` makes it by a reshape to (..., 1, head_dim), and the stream with it where they are tied.
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
class Blocks(Granularity):
    """Residual blocks, encoder layers and whole layers are physically removed: an identity takes their place.

    A module can go if a forward pass calls it once, if it returns one tensor of the shape and dtype of its first
    argument, if it shares nothing with the rest, and if the network runs without it. Of these go the outermost whose
    class (for a plain ``Sequential`` its content) is there more than once and which have several layers: residual
    blocks, encoder layers. Where there is no such block around them, single layers go, such as a square ``Linear`` of
    an MLP; the activation behind it stays. Why others stay is in ``Report.frozen``. The first layer of
    ``nn.TransformerEncoder`` and ``nn.TransformerDecoder`` is one of them: these read its attributes. Another is a
    module that is called with several tensors of that shape: which of them it hands on is not known.

    What is left is an ``nn.Identity``. Where the ``forward`` of a module can take more than its input, such as a mask,
    it is a ``lightning_prune.surgery.Passthrough``, which returns the first argument and ignores the others; then
    ``torch.jit.script`` refuses the network (``torch.export``, ``torch.compile`` and ``torch.jit.trace`` do not), and a
    pickle of the whole network needs this package.

    ``Scope(include=[...])`` restricts that to what its patterns match. A pattern that matches none of these blocks
    picks the modules which it names, if they can go: ``"encoder.layers.*.mlp"``. Where the shortcut lies outside of
    the module that is named, what is left adds its input twice; ``Sensitivity`` sees what that costs.

    Where channels are removed as well, either goes on with what the other leaves.

    Example:
        >>> import torch
        >>> from lightning_prune import prune_once
        >>> from lightning_prune.budgets import Count
        >>> from lightning_prune.criteria import Random
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        >>> report = prune_once(net, torch.zeros(1, 4), granularity=Blocks(), criterion=Random(), budget=Count(1))
        >>> report.plan.removed_modules, net[1], report.before.params, report.after.params
        (('1',), Identity(), 130, 58)
    """


@dataclass(frozen=True)
class Weights(Granularity):
    """Single weights, or blocks of them, are masked with zeros; the shapes stay.

    Args:
        regrow: Lets masked weights come back in a training, for others that go (RigL, SET); without it what is masked
            stays masked.
        block: Outputs and inputs of the blocks that go as one, by the mean of their scores; None for all of them.
            ``(4, 4)`` are the blocks of block-sparse kernels, ``(None, 1)`` whole columns of linear layers, ``(1,
            None)`` whole rows, and in convolutions ``(1, 1)`` whole kernels. A layer that has no whole blocks stays
            dense, with a warning and the reason in ``Report.frozen``; budgets are met to within one block of a layer,
            or of all.

    Raises:
        ValueError: If ``regrow`` is not a ``Regrowth``, ``block`` not a pair, or both are given.
    """

    regrow: Regrowth | None = None
    block: tuple[int | None, int | None] | None = None

    def __post_init__(self) -> None:
        if self.regrow is not None and not isinstance(self.regrow, Regrowth):
            raise ValueError(f"Weights regrow={self.regrow!r} must be a Regrowth, such as Regrowth(by='gradient')")
        if self.block is None:
            return
        sides = tuple(self.block) if isinstance(self.block, (tuple, list)) else ()
        whole = all(side is None or (type(side) is int and side > 0) for side in sides)
        if len(sides) != 2 or not whole or sides == (None, None):
            raise ValueError(
                f"Weights block={self.block!r} must be outputs and inputs, such as (4, 4), or (None, 1) for columns"
            )
        if self.regrow is not None:
            raise ValueError(f"Weights block={self.block!r} does not go with regrow, which exchanges single weights")
        object.__setattr__(self, "block", sides)


@dataclass(frozen=True)
class NM(Granularity):
    """``n`` of every ``m`` neighbouring weights survive, for kernels that read such blocks (2:4 on GPUs); shapes stay.

    Blocks lie along the input dimension of a weight, for convolutions at each position of the kernel. NM says itself
    how much goes, so it takes no budget; a schedule in several events goes from ``m`` to ``n`` one by one. A layer
    whose inputs are no multiple of ``m`` (in every group of a grouped convolution) stays dense, with a warning and the
    reason in ``Report.frozen``. Mishra et al. 2021, 'Accelerating sparse deep neural networks'; Zhou et al. 2021,
    'Learning N:M fine-grained structured sparse neural networks from scratch'.

    With ``Channels()`` in the same Trainer let NM begin after the last channels are gone, as blocks move with the
    inputs, and use ``Channels(round_to=4)``, so that these make whole blocks.

    Args:
        n: Weights that survive in a block, at least 1.
        m: Weights in a block, more than ``n``.

    Raises:
        ValueError: If they are not whole numbers, or not in this order.

    Example:
        >>> import torch
        >>> from lightning_prune import prune_once
        >>> net = torch.nn.Linear(4, 1, bias=False)
        >>> net.weight = torch.nn.Parameter(torch.tensor([[4.0, -1.0, 3.0, -5.0]]))
        >>> prune_once(net, torch.zeros(1, 4), granularity=NM(2, 4)).sparsity
        0.5
        >>> net.weight.tolist()
        [[4.0, 0.0, 0.0, -5.0]]
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        for name in ("n", "m"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"NM {name}={value!r} must be a whole number of at least 1")
        if self.n >= self.m:
            raise ValueError(f"NM n={self.n} must be less than m={self.m}: n of every m weights survive")
