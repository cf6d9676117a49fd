"""What the analysis of a network finds: groups of interchangeable units, and what goes with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor

from lightning_prune.coupling.symbols.constants import Constants
from lightning_prune.coupling.symbols.sizes import Attribute, Expression, LinearDim


@dataclass(frozen=True)
class Member:
    """The part of a group in one dimension of one tensor.

    Attributes:
        tensor: Qualified name of the parameter or buffer.
        dim: The dimension.
        index: Indices along ``dim``, shape (units, indices a unit): row ``u`` is what unit ``u`` owns.
        reads: Whether a layer reads these channels from its input (they are no output of it).
    """

    tensor: str
    dim: int
    index: Tensor
    reads: bool


@dataclass(frozen=True)
class Activation:
    """Where the activations of a group can be seen.

    Attributes:
        module: Qualified name of the module whose output carries the channels.
        dim: The channel dimension of that output, counted from the end (negative).
        index: Indices along ``dim``, shape (units, indices a unit).
    """

    module: str
    dim: int
    index: Tensor


@dataclass(frozen=True)
class Group:
    """Units that live in the same dimensions of the same tensors; each is removed as a whole.

    Attributes:
        name: The first tensor with a dimension that is all the group's, else its first tensor; with ``#2``, ``#3``, ...
            where several groups would have the same name.
        members: Every (tensor, dimension) the units live in.
        activations: Where the activations of the units can be seen; may be empty.
        inexact: Why removing a unit is not equal to masking it, None where it is equal.
        min_units: Fewest units that may stay: 2 where a grouped convolution would become a depthwise one with 1.
    """

    name: str
    members: tuple[Member, ...]
    activations: tuple[Activation, ...]
    inexact: str | None = None
    min_units: int = 1

    @property
    def size(self) -> int:
        """Number of units."""
        return int(self.members[0].index.shape[0])

    @property
    def channels_per_unit(self) -> int:
        """Indices that one unit owns in the first tensor."""
        return int(self.members[0].index.shape[1])


@dataclass(frozen=True)
class Bundle:
    """Groups that the forward pass makes shrink together: by count, whichever units each of them gives.

    Attributes:
        quantum: Group name -> units that it gives up with every step; all of its units are ``steps`` times as many.
        reason: What ties them, for the user.
    """

    quantum: Mapping[str, int]
    reason: str


@dataclass(frozen=True)
class PredictedShape:
    """A shape that the analysis foresees.

    Attributes:
        where: Qualified name of the module whose forward makes it.
        cut: Whether it is a part that was sliced, selected or split, and not a reshape.
        shape: What it is now.
        dims: Its dimensions; empty where it has no channels.
    """

    where: str
    cut: bool
    shape: tuple[int, ...]
    dims: tuple[LinearDim, ...]

    def after(self, removed: Mapping[str, int]) -> tuple[int, ...]:
        """The shape once so many units of each group are removed."""
        return tuple(round(dim.after(removed)) for dim in self.dims) or self.shape


@dataclass(frozen=True)
class WidthScalar:
    """A scalar that forward multiplies a tensor by, which may depend on a width.

    Attributes:
        value: The factor now.
        rows: Tensor name -> (dimension, indices) of the weights that can take up a change; empty where none can.
        power: How often these are a factor.
        groups: Groups whose channels the tensor carries or was summed over.
        where: Qualified name of the module whose forward multiplies.
    """

    value: float
    rows: Mapping[str, tuple[int, Tensor]]
    power: int
    groups: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class Passes:
    """The passes that the analysis has seen.

    Attributes:
        train_differs: Whether train mode runs on the example input alone, and runs other operations than eval
            mode.
        train_fails: Whether train mode does not run on the example input alone, where the modes may differ.
        outputs: Shapes of the outputs in eval mode and, where it is apart, in train mode.
        eval_shapes: How many of ``Coupling.sizes`` belong to eval mode.
        operations: What runs in eval mode, and last what these operations are set to.
    """

    train_differs: bool = False
    train_fails: bool = False
    outputs: tuple[tuple[int, ...], ...] = ()
    eval_shapes: int = 0
    operations: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Coupling:
    """What is known about a network: its groups, what must stay, and what each unit costs.

    Attributes:
        groups: Removable groups by name.
        frozen: Group name -> why nothing in it can be removed. Kernel positions and what layers read from
            the network's input or from data in buffers go without saying, and so do other dimensions of a tensor
            that shrinks along one, such as the positions of a table.
        shapes: Shape of every parameter and buffer when it was analysed.
        param_dims: For every parameter, its dimensions.
        mac_terms: (constant, dimensions) of every convolution and matrix product of one example's forward pass.
        on_meta: Whether the network runs on the meta device, where a forward pass costs nothing.
        bundles: Groups that shrink together; every group is in at most one.
        passes: What the passes of the analysis were.
        predicted_shapes: What every reshape, slice and split of these passes gives.
        scalars: Every scalar that the pass in eval mode multiplies a tensor by.
        constants: Other numbers that this pass computes with, and the groups whose channels they meet.
        attributes: Integers that modules keep and that have to follow, as expressions of the widths.
    """

    groups: Mapping[str, Group]
    frozen: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    param_dims: Mapping[str, tuple[LinearDim, ...]]
    mac_terms: tuple[tuple[float, tuple[LinearDim, ...]], ...]
    on_meta: bool
    passes: Passes
    predicted_shapes: tuple[PredictedShape, ...] = ()
    scalars: tuple[WidthScalar, ...] = ()
    constants: tuple[tuple[Constants, tuple[str, ...]], ...] = ()
    bundles: tuple[Bundle, ...] = ()
    attributes: Mapping[Attribute, Expression] = field(default_factory=dict)

    def params_after(self, removed: Mapping[str, int]) -> float:
        """Parameters of the network once so many units of each group are removed."""
        return sum(prod(dim.after(removed) for dim in dims) for dims in self.param_dims.values())

    def macs_after(self, removed: Mapping[str, int]) -> float:
        """Multiply-accumulates of one example once so many units of each group are removed."""
        return sum(constant * prod(dim.after(removed) for dim in dims) for constant, dims in self.mac_terms)

    def shrinking_together(self, names: Collection[str]) -> list[dict[str, int]]:
        """The parts that can shrink independently: every bundle, and every group that is in none.

        Args:
            names: The groups to take, of a bundle all or none.

        Returns:
            For each part, group name -> units that it loses with every step, in the order of ``names``.

        Raises:
            ValueError: If ``names`` contains only a part of a bundle, which cannot shrink alone.

        Example:
            >>> tied = Bundle({"stream": 12, "heads": 1}, "nn.MultiheadAttention splits the stream into heads")
            >>> coupling = Coupling({}, {}, {}, {}, (), on_meta=False, passes=Passes(), bundles=(tied,))
            >>> coupling.shrinking_together(["stream", "fc", "heads"])
            [{'stream': 12, 'heads': 1}, {'fc': 1}]
        """
        bundle_of = {name: bundle for bundle in self.bundles for name in bundle.quantum}
        parts: list[dict[str, int]] = []
        taken: set[str] = set()
        for name in names:
            if name in taken:
                continue
            quantum = dict(bundle_of[name].quantum) if name in bundle_of else {name: 1}
            missing = sorted(quantum.keys() - set(names))
            if missing:
                raise ValueError(
                    f"{name!r} shrinks only together with {missing[0]!r}, which is not among {list(names)}"
                )
            parts.append(quantum)
            taken.update(quantum)
        return parts

    def kept_together(self, reasons: Mapping[str, str]) -> dict[str, str]:
        """``reasons``, and those of the groups that shrink only together with one of these.

        Args:
            reasons: Group name -> why it is kept. Groups that this coupling no longer has are kept as well.
        """
        found = dict(reasons)
        for bundle in self.bundles:
            fixed = [name for name in bundle.quantum if name in reasons or name not in self.groups]
            if not fixed:
                continue
            why = reasons.get(fixed[0], self.frozen.get(fixed[0], "it has no channels that can go"))
            for name in bundle.quantum.keys() - set(fixed):
                found[name] = f"shrinks only together with {fixed[0]!r} ({bundle.reason}), which must stay: {why}"
        return found
