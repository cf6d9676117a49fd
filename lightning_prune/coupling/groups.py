"""The result of the analysis of a network: groups of interchangeable units, bundles of groups, and their costs."""

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
    """The indices of a group in one dimension of one tensor.

    Attributes:
        tensor: Qualified name of the parameter or buffer.
        dim: The dimension.
        index: Indices along ``dim``, shape (units, indices per unit): row ``u`` belongs to unit ``u``.
        reads: Whether these are input channels of a layer (and not its output channels).
    """

    tensor: str
    dim: int
    index: Tensor
    reads: bool


@dataclass(frozen=True)
class Activation:
    """A module output that holds the activations of a group.

    Attributes:
        module: Qualified name of the module.
        dim: The channel dimension of that output, counted from the end (negative).
        index: Indices along ``dim``, shape (units, indices per unit).
    """

    module: str
    dim: int
    index: Tensor


@dataclass(frozen=True)
class Group:
    """A dependency group: interchangeable units in the same dimensions of the same tensors.

    A unit is a set of coupled channels that are removed together.

    Attributes:
        name: The first tensor with a dimension that belongs to the group completely, else its first tensor; followed
            by ``#2``, ``#3``, ... where several groups would have the same name.
        members: Every (tensor, dimension) with channels of the units.
        activations: Module outputs that hold the activations of the units; may be empty.
        inexact: Why the removal of a unit is not equal to masking it, None where it is equal.
        min_units: Fewest units to keep: 2 where a grouped convolution would become depthwise with 1.
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
        """Indices of one unit in the first tensor."""
        return int(self.members[0].index.shape[1])


@dataclass(frozen=True)
class Bundle:
    """Groups that must shrink together: in fixed proportions, but each by units of its own choice.

    Attributes:
        quantum: Group name -> units that it loses with every step; its number of units is a multiple of it.
        reason: What couples their sizes, for messages.
    """

    quantum: Mapping[str, int]
    reason: str


@dataclass(frozen=True)
class PredictedShape:
    """The shape of an activation as a function of the removed units.

    Attributes:
        where: Qualified name of the module whose forward computes it.
        cut: Whether it is the result of a slice, selection or split, and not of a reshape.
        shape: The shape in the analyzed network.
        dims: The size of each dimension; empty where the tensor carries no channels.
    """

    where: str
    cut: bool
    shape: tuple[int, ...]
    dims: tuple[LinearDim, ...]

    def after(self, removed: Mapping[str, int]) -> tuple[int, ...]:
        """The shape after the removal of ``removed`` (group name -> number of units)."""
        return tuple(round(dim.after(removed)) for dim in self.dims) or self.shape


@dataclass(frozen=True)
class WidthScalar:
    """A scalar that forward multiplies a tensor by and that may depend on a width.

    Attributes:
        value: Its value in the analyzed network.
        rows: Tensor name -> (dimension, indices) of the weights that can compensate for a change; empty where none can.
        power: The exponent of these weights relative to the scalar's.
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
    """The forward passes that the analysis has traced.

    Attributes:
        train_differs: Whether train mode runs on the example input alone, and runs other operations than eval
            mode.
        train_fails: Whether train mode does not run on the example input alone, where the modes may differ.
        outputs: Shapes of the outputs in eval mode and, if ``train_differs``, in train mode.
        eval_shapes: Number of ``Coupling.predicted_shapes`` that belong to eval mode.
        operations: The operations in eval mode, followed by a tuple of their settings.
    """

    train_differs: bool = False
    train_fails: bool = False
    outputs: tuple[tuple[int, ...], ...] = ()
    eval_shapes: int = 0
    operations: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Coupling:
    """The coupled channels of a network: removable groups, frozen channels, and the cost of every unit.

    Attributes:
        groups: Removable groups by name.
        frozen: Group name -> why nothing in it can be removed. It lists no kernel positions, no channels that layers
            read from the network's input or from buffers, and no other dimensions of a tensor that shrinks along one,
            such as the positions of a table.
        shapes: Shape of every parameter and buffer when it was analyzed.
        param_dims: For every parameter, the size of each dimension.
        mac_terms: (constant, dimensions) of every convolution and matrix product in the forward pass of one example.
        on_meta: Whether the network runs on the meta device, where a forward pass computes no values.
        bundles: Groups that shrink together; every group is in at most one.
        passes: The traced passes.
        predicted_shapes: The results of every reshape, slice and split in these passes.
        scalars: Every scalar that the pass in eval mode multiplies a tensor by.
        constants: Other numbers that this pass computes with, and the groups whose channels they are combined with.
        attributes: Integer attributes of modules that depend on widths, as expressions.
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
        """Number of parameters after the removal of ``removed`` (group name -> number of units)."""
        return sum(prod(dim.after(removed) for dim in dims) for dims in self.param_dims.values())

    def macs_after(self, removed: Mapping[str, int]) -> float:
        """Multiply-accumulates of one example after the removal of ``removed`` (group name -> number of units)."""
        return sum(constant * prod(dim.after(removed) for dim in dims) for constant, dims in self.mac_terms)

    def shrinking_together(self, names: Collection[str]) -> list[dict[str, int]]:
        """The parts that can shrink independently: every bundle, and every group that belongs to no bundle.

        Args:
            names: Names of groups; of a bundle all or none.

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
        """``reasons``, extended by the groups that shrink only together with one of these groups.

        Args:
            reasons: Group name -> why it is kept. Groups that are no longer in this coupling are kept as well.
        """
        found = dict(reasons)
        for bundle in self.bundles:
            fixed = [name for name in bundle.quantum if name in reasons or name not in self.groups]
            if not fixed:
                continue
            why = reasons.get(fixed[0], self.frozen.get(fixed[0], "it has no channels that can be removed"))
            for name in bundle.quantum.keys() - set(fixed):
                found[name] = f"shrinks only together with {fixed[0]!r} ({bundle.reason}), which must stay: {why}"
        return found
