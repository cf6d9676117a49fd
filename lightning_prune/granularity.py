"""Granularity: the structures that are pruned, which are channels, blocks, single weights or N of M weights."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_prune.masks.regrowth import Regrowth
from lightning_prune.network.argument_checks import check_choice, check_integer

Attention = Literal["head_dims", "heads"]
Ranking = Literal["global", "isomorphic"]
Aggregate = Literal["sum", "mean", "max", "first"]


class Granularity(ABC):  # noqa: B024  (a marker: each subclass has a pruner)
    """Base class of all granularities."""


@dataclass(frozen=True)
class Channels(Granularity):
    """Structured pruning: channels are physically removed, and the network becomes smaller and faster.

    Args:
        round_to: Every group that is pruned keeps a multiple of this many channels, such as 8 or 16 for fast kernels:
            the multiple nearest to the width of the budget, at least one. Groups that are pruned only together are
            rounded together. A group with fewer channels is not pruned; the reason is in ``Report.frozen``.
        min_width: Minimum number of channels of every group. A group that is not wider is not pruned; the reason is in
            ``Report.frozen``.
        attention: Structure that is removed from attention layers, where the network allows both: ``"head_dims"``
            removes the same number of dimensions from every head, ``"heads"`` removes whole heads. A single head that
            ``forward`` makes by a reshape to (..., 1, head_dim) is kept, and so is a residual stream tied to it.
        ranking: Groups that are ranked together under a budget with ``per_layer=False``. ``"global"``: all groups, for
            which criteria normalize their scores. ``"isomorphic"``: groups of the same kind, where every kind loses
            the same share of its units (Fang et al. 2024, 'Isomorphic pruning for vision models'), because scores of
            different structures (residual streams, hidden layers, heads) have different distributions.
        aggregate: Reduction of the scores that a unit has in each of the coupled tensors (the group reduction of Fang
            et al. 2023, 'DepGraph', in their code): ``"sum"``, ``"mean"``, ``"max"``, or ``"first"`` for the score in
            the layer that makes the channels. ``"sum"`` and ``"mean"`` give the same ranking where the criterion
            normalizes groups afterwards, as the criteria of this package do, except those in units of the loss
            (``WeightTaylor`` and other second moments of gradients).

    Raises:
        ValueError: If ``round_to`` or ``min_width`` is not an integer of at least 1, or another argument is not one of
            its choices.

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
            check_integer(self, name, getattr(self, name), minimum=1)
        for name, choices in (("attention", Attention), ("ranking", Ranking), ("aggregate", Aggregate)):
            check_choice(self, name, getattr(self, name), get_args(choices))


@dataclass(frozen=True)
class Blocks(Granularity):
    """Depth pruning: residual blocks, encoder layers and whole layers are physically removed, replaced by an identity.

    A module can be removed if a forward pass calls it once, if it returns one tensor of the shape and dtype of its
    first argument, if it shares nothing with the rest of the network, and if the network runs without it. The blocks
    are the outermost of these modules that have several layers and whose class (for a plain ``Sequential``: whose
    content) occurs more than once, such as residual blocks and encoder layers. Outside of such blocks, single layers
    are removed, such as a square ``Linear`` of an MLP; the activation after it is kept. ``Report.frozen`` holds the
    reason for each block that is kept. Among them are the first layer of ``nn.TransformerEncoder`` and
    ``nn.TransformerDecoder``, whose attributes these classes read, and modules that are called with several tensors of
    that shape, because it is not known which of them to pass on.

    A removed module is replaced by ``nn.Identity``. If its ``forward`` takes further arguments, such as a mask, it is
    replaced by a ``lightning_prune.surgery.Passthrough``, which returns the first argument and ignores the others.
    ``torch.jit.script`` refuses such a network (``torch.export``, ``torch.compile`` and ``torch.jit.trace`` accept it),
    and a pickle of the whole network requires this package.

    ``Scope(include=[...])`` restricts pruning to the blocks that match. A pattern that matches none of the blocks
    selects the modules with matching names, if they can be removed: ``"encoder.layers.*.mlp"``. If the shortcut lies
    outside of such a module, the network without it adds the input twice; ``Sensitivity`` includes this in its scores.

    Blocks and channels of the same network can both be pruned; each continues with the network as the other leaves it.

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
    """Unstructured pruning: single weights, or blocks of weights, are masked with zeros; shapes do not change.

    Args:
        regrow: Exchanges masked weights during training for others, which are masked instead (RigL, SET). By default a
            masked weight stays masked.
        block: Number of outputs and inputs of a block of weights that is masked as a whole, by its mean score. None
            for one of them means all outputs, or all inputs. ``(4, 4)`` gives the blocks of block-sparse kernels,
            ``(None, 1)`` whole columns of linear layers, ``(1, None)`` whole rows, and in convolutions ``(1, 1)`` whole
            kernels. A layer whose size is not a multiple of the block stays dense, with a warning and the reason in
            ``Report.frozen``. Budgets are met to within one block of a layer, or of all layers.

    Raises:
        ValueError: If ``regrow`` is not a ``Regrowth``, if ``block`` is not a pair of positive integers or None, or if
            both are given.
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
                f"Weights block={self.block!r} must be a pair (outputs, inputs), such as (4, 4) or (None, 1)"
            )
        if self.regrow is not None:
            raise ValueError(
                f"Weights block={self.block!r} cannot be combined with regrow, which exchanges single weights"
            )
        object.__setattr__(self, "block", sides)


@dataclass(frozen=True)
class NM(Granularity):
    """N:M sparsity: ``n`` of every ``m`` consecutive weights are kept, as required by sparse kernels (2:4 on GPUs).

    Blocks lie along the input dimension of a weight, for convolutions at each position of the kernel; shapes do not
    change. NM takes no budget, because ``n`` and ``m`` determine the sparsity; over several events of a schedule the
    weights kept in a block decrease one by one from ``m`` to ``n``. A layer whose number of inputs is not a multiple of
    ``m`` (in every group of a grouped convolution) stays dense, with a warning and the reason in ``Report.frozen``.
    Mishra et al. 2021, 'Accelerating sparse deep neural networks'; Zhou et al. 2021, 'Learning N:M fine-grained
    structured sparse neural networks from scratch'.

    With ``Channels()`` in the same Trainer, start NM after the last channels are removed, because blocks shift with
    the inputs, and use ``Channels(round_to=m)``, so that the remaining inputs form whole blocks.

    Args:
        n: Weights kept in a block, at least 1.
        m: Weights in a block, more than ``n``.

    Raises:
        ValueError: If one of them is not an integer of at least 1, or if ``n`` is not less than ``m``.

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
            check_integer(self, name, getattr(self, name), minimum=1)
        if self.n >= self.m:
            raise ValueError(f"NM n={self.n} must be less than m={self.m}: n of every m weights are kept")
