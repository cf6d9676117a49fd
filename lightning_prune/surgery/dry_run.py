"""Try widths on a copy before the real network is touched."""

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

OTHER_CODE_PATH = "with fewer channels the forward pass takes another way"
_OTHER_SETTINGS = "forward calls an operation with numbers that follow the width, such as its padding or epsilon"


@dataclass(frozen=True)
class DryRunResult:
    """What became of an attempt.

    Attributes:
        failing: Group name -> why it cannot be pruned, for the groups without which the others can.
        constants: The same for ``Coupling.constants``.
        apart: Whether the smaller network runs other operations than the one with zeros, where values decide on these.
        scalars: The scalars that the smaller network multiplies by, in the order of ``Coupling.scalars``; empty where
            its passes cannot be compared.
    """

    failing: Mapping[str, str]
    scalars: tuple[float, ...] = ()
    constants: tuple[tuple[float, ...], ...] = ()
    apart: bool = False


def try_widths(model: nn.Module, example: Example, coupling: Coupling, removed: Mapping[str, Tensor]) -> DryRunResult:
    """Run the network as it would be on a copy, in eval and in train mode, and find the groups that break it.

    Where train mode runs the same operations on the same shapes, eval mode speaks for it.

    The outputs must keep their shapes, and every reshape, slice and split must give the shape that the analysis
    foresees: a ``-1`` beside a number written in the code takes what is left, which would run, with channels in the
    wrong places. What is foreseen also tells which groups are at fault; where it does not, bisection does.

    Args:
        model: The network; it is not touched.
        example: What its forward receives.
        coupling: Its analysis.
        removed: Group name -> bool tensor (units,), True where the unit goes.
    """
    bundle_of = {name: tuple(bundle.quantum) for bundle in coupling.bundles for name in bundle.quantum}
    active = [name for name, units in removed.items() if units.any()]
    blamed: dict[str, str] = {}

    def attempt(names: Iterable[str]) -> _Attempt:
        return _attempt(model, example, coupling, {name: removed[name] for name in names})

    while (last := attempt(active)).error is not None and active:
        named = {mate for name in last.suspects for mate in bundle_of.get(name, (name,))} & set(active)
        culprits = dict.fromkeys(sorted(named), last.error) if named else _bisected(active, bundle_of, attempt)
        blamed.update(culprits)
        active = [name for name in active if name not in culprits]
        if not culprits:  # each half works and the whole does not
            blamed.update(dict.fromkeys(active, last.error))
            active = []
    return DryRunResult(blamed, last.scalars, last.constants, last.apart)


def _bisected(names: list[str], bundle_of: Mapping[str, tuple[str, ...]], attempt: Any) -> dict[str, str]:
    """The members of ``names`` without which the rest works together."""
    parts = list(dict.fromkeys(tuple(m for m in bundle_of.get(name, (name,)) if m in names) for name in names))
    accepted: list[str] = []
    blamed: dict[str, str] = {}

    def search(some: list[tuple[str, ...]]) -> None:
        if not some:
            return
        inside = [name for part in some for name in part]
        error = attempt([*accepted, *inside]).error
        if error is None:
            accepted.extend(inside)
        elif len(some) == 1:
            blamed.update(dict.fromkeys(inside, error))
        else:
            search(some[: len(some) // 2])
            search(some[len(some) // 2 :])

    search(parts)
    return blamed


@dataclass(frozen=True)
class _Attempt:
    error: str | None
    suspects: tuple[str, ...] = ()
    scalars: tuple[float, ...] = ()
    constants: tuple[tuple[float, ...], ...] = ()
    apart: bool = False


def _attempt(model: nn.Module, example: Example, coupling: Coupling, removed: Mapping[str, Tensor]) -> _Attempt:
    plan = plan_removal(removed, coupling)
    gone = {name: int(units.sum()) for name, units in removed.items()}

    def use(copy: nn.Module, inputs: Example) -> _Attempt:
        apply_plan(copy, plan)
        watch = OperationLog(coupling.on_meta)
        eval_shapes: list[tuple[bool, tuple[int, ...]]] = []

        def train() -> Any:
            watch.shapes[:] = eval_shapes  # an earlier try may have left others
            return inputs.run(copy.train())

        try:
            with WithoutDropout(), watch:
                outputs = [inputs.run(copy.eval())]
                scalars, constants, eval_shapes = tuple(watch.scalars), tuple(watch.constants), list(watch.shapes)
                operations = watch.seen()
                if coupling.passes.train_differs:
                    outputs.append(run_as_training(train)[0])
        except Exception as error:
            return _unforeseen(coupling, gone, watch.shapes) or _failure(coupling, gone, error, watch)
        if not _same_shapes(coupling, [tensor.shape for tensor in tensors_in(outputs)]):
            changed = _Attempt("with fewer channels the shapes of the outputs change")
            return _unforeseen(coupling, gone, watch.shapes) or changed
        apart = _apart(coupling.passes.operations, operations)
        if apart is not None and coupling.on_meta:
            return _Attempt(apart)
        differs = apart is not None and _apart(_masked_run(model, plan, inputs), operations) is not None
        wrong = _detour(coupling, gone, eval_shapes, scalars)
        return wrong or _Attempt(None, scalars=scalars, constants=constants, apart=differs)

    attempt: _Attempt = run_on_copy(model, example, use, coupling.on_meta)
    return attempt


def _masked_run(model: nn.Module, plan: Plan, inputs: Example) -> tuple[Any, ...]:
    """What a copy runs in which zeros stand for what ``plan`` removes: its values are those of the smaller network."""
    copy, watch = copy_of(model), OperationLog(on_meta=False)
    zero_removed(copy, plan)
    with WithoutDropout(), watch:
        inputs.run(copy.eval())
    return watch.seen()


def _apart(before: tuple[Any, ...], now: tuple[Any, ...]) -> str | None:
    """In what a pass of a smaller network differs from one of the network: operations, then what they are set to."""
    if before[:-1] != now[:-1]:
        return OTHER_CODE_PATH
    return None if same_settings(before[-1], now[-1]) else _OTHER_SETTINGS


def _failure(coupling: Coupling, gone: Mapping[str, int], error: Exception, watch: OperationLog) -> _Attempt:
    said = str(error).splitlines()[0] if str(error) else repr(error)
    number = len(watch.shapes)
    site = (
        coupling.predicted_shapes[number]
        if watch.failed_in_reshape and number < len(coupling.predicted_shapes)
        else None
    )
    if site is None or not site.dims:
        return _Attempt(f"with fewer channels the forward pass fails: {said}")
    return _Attempt(_written(site, "asks for", site.shape, site.after(gone)), _groups_of(site))


def _written(site: PredictedShape, does: str, shape: tuple[int, ...], due: tuple[int, ...]) -> str:
    where = f"{site.where!r}: " if site.where else ""
    wrong = f"{does} the shape {shape} instead of {due} with fewer channels"
    return f"{where}forward {wrong}: a number is written in the code"


def _same_shapes(coupling: Coupling, found: list[torch.Size]) -> bool:
    """Whether the outputs have their old shapes; how many objects a detector finds is no matter of its shape."""
    old = coupling.passes.outputs
    if coupling.on_meta:
        return [tuple(shape) for shape in found] == list(old)
    return len(found) == len(old) and all(
        len(a) == len(b) and tuple(a[1:]) == tuple(b[1:]) for a, b in zip(found, old, strict=True)
    )


def _detour(
    coupling: Coupling, gone: Mapping[str, int], found: list[tuple[bool, tuple[int, ...]]], scalars: tuple[float, ...]
) -> _Attempt | None:
    """What the pass did otherwise than foreseen; values may change a detector's way, which is then not compared."""
    sizes = coupling.predicted_shapes[
        : coupling.passes.eval_shapes
    ]  # train mode may go its own ways, as with layers left out at random
    if len(found) == len(sizes):
        return _unforeseen(coupling, gone, found)
    if not coupling.on_meta:
        return None
    cuts = [shape for cut, shape in found if cut]
    if cuts == [site.after(gone) for site in sizes if site.cut] and len(scalars) == len(coupling.scalars):
        due = iter(site.after(gone) for site in sizes if not site.cut)
        if all(shape in due for cut, shape in found if not cut):  # a reshape that changes nothing may be left out
            return None
    return _Attempt(OTHER_CODE_PATH)


def _unforeseen(
    coupling: Coupling, gone: Mapping[str, int], found: list[tuple[bool, tuple[int, ...]]]
) -> _Attempt | None:
    """The first shape that is not what the analysis foresees, and the groups that it has to do with."""
    for site, (_, shape) in zip(coupling.predicted_shapes, found, strict=False):
        due = site.after(gone)
        if site.dims and due != shape:
            return _Attempt(_written(site, "gives", shape, due), _groups_of(site))
    return None


def _groups_of(site: PredictedShape) -> tuple[str, ...]:
    return tuple(name for dim in site.dims for name in dim.per_unit)
