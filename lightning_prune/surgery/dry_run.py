"""Dry run of a removal on a copy: it finds the groups of channels that cannot be removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.coupling.groups import Coupling, PredictedShape
from lightning_prune.coupling.operation_log import OperationLog
from lightning_prune.coupling.symbols.constants import same_settings
from lightning_prune.coupling.tracing.python_calls import WithoutDropout
from lightning_prune.coupling.train_mode import run_as_training
from lightning_prune.network.copies import copy_of
from lightning_prune.network.example_input import Example, run_on_copy
from lightning_prune.network.tensors import tensors_in
from lightning_prune.surgery.apply import apply_plan, zero_removed
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.removal import plan_removal

OTHER_CODE_PATH = "with fewer channels the forward pass follows a different code path"
_OTHER_SETTINGS = "forward calls an operation with numbers that depend on the width, such as its padding or epsilon"


@dataclass(frozen=True)
class DryRunResult:
    """Result of a dry run.

    Attributes:
        failing: Group name -> reason why it cannot be pruned; all other groups can be pruned together.
        scalars: The scalars that the smaller network multiplies by, in the order of ``Coupling.scalars``; empty where
            the forward passes cannot be compared.
        constants: The constants of the smaller network, in the order of ``Coupling.constants``.
        apart: Whether the smaller network runs other operations than the masked one, for networks whose operations
            depend on values.
    """

    failing: Mapping[str, str]
    scalars: tuple[float, ...] = ()
    constants: tuple[tuple[float, ...], ...] = ()
    apart: bool = False


def try_widths(model: nn.Module, example: Example, coupling: Coupling, removed: Mapping[str, Tensor]) -> DryRunResult:
    """Run the pruned network on a copy, in eval and in train mode, and find the groups that make it fail.

    Train mode is run only where it differs from eval mode in operations or shapes.

    The outputs must keep their shapes, and every reshape, slice and split must give the shape that the analysis
    predicts: a ``-1`` next to a number written in the code would run without an error, with channels in the wrong
    places. A wrong shape identifies the failing groups; for other errors, they are found by bisection.

    Args:
        model: The network; it is not changed.
        example: Its example input.
        coupling: The analysis of the network.
        removed: Group name -> bool tensor of shape (units,), True where the unit is removed.
    """
    bundle_of = {name: tuple(bundle.quantum) for bundle in coupling.bundles for name in bundle.quantum}
    active = [name for name, units in removed.items() if units.any()]
    failing: dict[str, str] = {}

    def attempt(names: Iterable[str]) -> _Attempt:
        return _attempt(model, example, coupling, {name: removed[name] for name in names})

    while (last := attempt(active)).error is not None and active:
        suspects = {member for name in last.suspects for member in bundle_of.get(name, (name,))} & set(active)
        found = dict.fromkeys(sorted(suspects), last.error) if suspects else _bisected(active, bundle_of, attempt)
        failing.update(found)
        active = [name for name in active if name not in found]
        if not found:  # each half runs, but both together fail
            failing.update(dict.fromkeys(active, last.error))
            active = []
    return DryRunResult(failing, last.scalars, last.constants, last.apart)


def _bisected(names: list[str], bundle_of: Mapping[str, tuple[str, ...]], attempt: Any) -> dict[str, str]:
    """The failing groups among ``names``, found by bisection; all others can be removed together."""
    parts = list(dict.fromkeys(tuple(m for m in bundle_of.get(name, (name,)) if m in names) for name in names))
    accepted: list[str] = []
    failing: dict[str, str] = {}

    def search(some: list[tuple[str, ...]]) -> None:
        if not some:
            return
        inside = [name for part in some for name in part]
        error = attempt([*accepted, *inside]).error
        if error is None:
            accepted.extend(inside)
        elif len(some) == 1:
            failing.update(dict.fromkeys(inside, error))
        else:
            search(some[: len(some) // 2])
            search(some[len(some) // 2 :])

    search(parts)
    return failing


@dataclass(frozen=True)
class _Attempt:
    """Result of running the network without some groups: the error if it fails, and the groups that may cause it."""

    error: str | None
    suspects: tuple[str, ...] = ()
    scalars: tuple[float, ...] = ()
    constants: tuple[tuple[float, ...], ...] = ()
    apart: bool = False


def _attempt(model: nn.Module, example: Example, coupling: Coupling, removed: Mapping[str, Tensor]) -> _Attempt:
    plan = plan_removal(removed, coupling)
    counts = {name: int(units.sum()) for name, units in removed.items()}

    def use(copy: nn.Module, inputs: Example) -> _Attempt:
        apply_plan(copy, plan)
        log = OperationLog(coupling.on_meta)
        eval_shapes: list[tuple[bool, tuple[int, ...]]] = []

        def train() -> Any:
            log.shapes[:] = eval_shapes  # an earlier run may have logged others
            return inputs.run(copy.train())

        try:
            with WithoutDropout(), log:
                outputs = [inputs.run(copy.eval())]
                scalars, constants, eval_shapes = tuple(log.scalars), tuple(log.constants), list(log.shapes)
                operations = log.seen()
                if coupling.passes.train_differs:
                    outputs.append(run_as_training(train)[0])
        except Exception as error:
            return _wrong_shape(coupling, counts, log.shapes) or _failure(coupling, counts, error, log)
        if not _same_shapes(coupling, [tensor.shape for tensor in tensors_in(outputs)]):
            changed = _Attempt("with fewer channels the shapes of the outputs change")
            return _wrong_shape(coupling, counts, log.shapes) or changed
        difference = _difference(coupling.passes.operations, operations)
        if difference is not None and coupling.on_meta:
            return _Attempt(difference)
        differs = difference is not None and _difference(_masked_run(model, plan, inputs), operations) is not None
        wrong = _deviation(coupling, counts, eval_shapes, scalars)
        return wrong or _Attempt(None, scalars=scalars, constants=constants, apart=differs)

    attempt: _Attempt = run_on_copy(model, example, use, coupling.on_meta)
    return attempt


def _masked_run(model: nn.Module, plan: Plan, inputs: Example) -> tuple[Any, ...]:
    """The operations of a masked copy, whose values are those of the smaller network."""
    copy, log = copy_of(model), OperationLog(on_meta=False)
    zero_removed(copy, plan)
    with WithoutDropout(), log:
        inputs.run(copy.eval())
    return log.seen()


def _difference(before: tuple[Any, ...], now: tuple[Any, ...]) -> str | None:
    """How two forward passes differ: in their operations, or else in the settings of these; None if they do not."""
    if before[:-1] != now[:-1]:
        return OTHER_CODE_PATH
    return None if same_settings(before[-1], now[-1]) else _OTHER_SETTINGS


def _failure(coupling: Coupling, counts: Mapping[str, int], error: Exception, log: OperationLog) -> _Attempt:
    message = str(error).splitlines()[0] if str(error) else repr(error)
    number = len(log.shapes)
    site = (
        coupling.predicted_shapes[number] if log.failed_in_reshape and number < len(coupling.predicted_shapes) else None
    )
    if site is None or not site.dims:
        return _Attempt(f"with fewer channels the forward pass fails: {message}")
    return _Attempt(_fixed_shape(site, "asks for", site.shape, site.after(counts)), _groups_of(site))


def _fixed_shape(site: PredictedShape, verb: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """The message for a shape that does not change with the width, because a number is written in the code."""
    where = f"{site.where!r}: " if site.where else ""
    wrong = f"{verb} the shape {shape} instead of {expected} with fewer channels"
    return f"{where}forward {wrong}: a number is written in the code"


def _same_shapes(coupling: Coupling, found: list[torch.Size]) -> bool:
    """Whether the outputs have their old shapes, except for the number of objects that a detector finds."""
    old = coupling.passes.outputs
    if coupling.on_meta:
        return [tuple(shape) for shape in found] == list(old)
    return len(found) == len(old) and all(
        len(a) == len(b) and tuple(a[1:]) == tuple(b[1:]) for a, b in zip(found, old, strict=True)
    )


def _deviation(
    coupling: Coupling, counts: Mapping[str, int], found: list[tuple[bool, tuple[int, ...]]], scalars: tuple[float, ...]
) -> _Attempt | None:
    """The deviation of a pass from the predicted shapes; None for detectors, whose code path depends on values."""
    sizes = coupling.predicted_shapes[: coupling.passes.eval_shapes]  # train mode may differ, as with stochastic depth
    if len(found) == len(sizes):
        return _wrong_shape(coupling, counts, found)
    if not coupling.on_meta:
        return None
    cuts = [shape for cut, shape in found if cut]
    if cuts == [site.after(counts) for site in sizes if site.cut] and len(scalars) == len(coupling.scalars):
        expected = iter(site.after(counts) for site in sizes if not site.cut)
        if all(shape in expected for cut, shape in found if not cut):  # a reshape that changes nothing may be omitted
            return None
    return _Attempt(OTHER_CODE_PATH)


def _wrong_shape(
    coupling: Coupling, counts: Mapping[str, int], found: list[tuple[bool, tuple[int, ...]]]
) -> _Attempt | None:
    """The first shape that the analysis does not predict, with the groups that it depends on."""
    for site, (_, shape) in zip(coupling.predicted_shapes, found, strict=False):
        expected = site.after(counts)
        if site.dims and expected != shape:
            return _Attempt(_fixed_shape(site, "gives", shape, expected), _groups_of(site))
    return None


def _groups_of(site: PredictedShape) -> tuple[str, ...]:
    return tuple(name for dim in site.dims for name in dim.per_unit)
