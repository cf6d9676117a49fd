"""One pruning event without a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.budgets.budget import Budget
from lightning_prune.budgets.shares import Ratio
from lightning_prune.checkpoint.manifest import track_plan, track_shapes
from lightning_prune.criteria.by_name import criterion_named
from lightning_prune.criteria.criterion import Criterion
from lightning_prune.criteria.magnitude import Magnitude
from lightning_prune.criteria.statistics.second_order import Curvature
from lightning_prune.criteria.statistics.statistics import Statistics
from lightning_prune.granularity import Channels, Granularity, Weights
from lightning_prune.network.example_input import Example
from lightning_prune.network.module_modes import eval_mode
from lightning_prune.pruners.arguments import check_types
from lightning_prune.pruners.block_pruner import BlockPruner
from lightning_prune.pruners.factory import budget_for, make_pruner
from lightning_prune.pruners.pruner import Pruner
from lightning_prune.scope import Scope
from lightning_prune.surgery.report import Report


def prune_once(
    model: nn.Module,
    example_inputs: Any,
    *,
    granularity: Granularity | None = None,
    criterion: Criterion | str | None = None,
    budget: Budget | None = None,
    scope: Scope | None = None,
    calibrate: Callable[[nn.Module], Any] | None = None,
    dry_run: bool = False,
) -> Report:
    """Prune a network once, in place.

    Args:
        model: Any network; it keeps its mode, devices, dtypes, ``requires_grad`` flags and parameter order. Its state
            dicts say from now on what was pruned, for ``load_pruned``.
        example_inputs: What its forward receives: a tuple is positional, a dict is keyword, anything else is the one
            argument.
        granularity: ``Channels()`` (the default) and ``Blocks()`` remove, ``Weights()`` and ``NM(2, 4)`` mask.
        criterion: What matters, an object or the name of one without arguments; ``Magnitude()`` by default.
        budget: Until what; ``Ratio(0.5)`` by default, but for ``NM``, which takes none.
        scope: Where; everywhere by default.
        calibrate: Runs passes over some data, for criteria that need to see them. It returns losses to go backward
            from, such as ``lambda model: (loss(model(x), y) for x, y in batches)``, or runs backward passes itself
            (not for ``Hessian`` and ``GraSP``, which differentiate twice), or for criteria that look at activations
            alone, forward passes. Gradients are dropped afterwards; batch-norm
            statistics move if the model is in train mode. ``Sensitivity`` runs it in eval mode and without gradients,
            once for the whole network and once for each block that could go, and compares the mean losses.
        dry_run: Leave the model as it is and only report what would happen.

    Returns:
        What was done, or would be.

    Raises:
        ValueError: If an argument is of the wrong kind or does not fit the network; nothing has been changed then.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
        >>> report = prune_once(net, torch.zeros(1, 3, 6, 6), budget=Ratio(0.25))
        >>> net[0].out_channels, net[3].in_features, report.after.params
        (6, 96, 1138)
    """
    granularity = Channels() if granularity is None else granularity
    named = criterion_named(criterion) if isinstance(criterion, str) else criterion
    criterion = Magnitude() if named is None else named
    budget = budget_for(granularity, budget) or Ratio(0.5)
    scope = Scope() if scope is None else scope
    check_types(
        "prune_once",
        model=model, granularity=granularity, criterion=criterion, budget=budget, scope=scope, dry_run=dry_run,
    )  # fmt: skip
    if isinstance(granularity, Weights) and granularity.regrow is not None:
        raise ValueError(f"prune_once granularity={granularity!r} regrows weights in a training; use IterativePruning")
    if calibrate is not None:
        check_types("prune_once", calibrate=calibrate)
    example = Example.of(example_inputs, model)
    pruner = make_pruner(granularity, criterion, budget, scope)
    pruner.prepare(model, example)
    try:
        if pruner.statistics is not None:
            _gather(pruner, model, calibrate)
        losses = None
        if isinstance(pruner, BlockPruner) and criterion.compares_losses:
            losses = _ablation_losses(pruner, model, example, calibrate)
        report = pruner.plan(model, example, 1.0, statistics=losses)
    finally:
        if pruner.statistics is not None:
            pruner.statistics.detach()
    if not dry_run:
        if report.plan.shrinks:
            track_shapes(model)
            track_plan(model, report.plan)
        pruner.apply(model, report, ())
    return report


def _gather(pruner: Pruner, model: nn.Module, calibrate: Callable[[nn.Module], Any] | None) -> None:
    assert pruner.statistics is not None
    if calibrate is None:
        raise ValueError(
            f"criterion {pruner.criterion} needs {pruner.statistics.looks_at}: pass calibrate=, a function that runs "
            "forward and backward passes on the model, or use IterativePruning in a Trainer"
        )
    pruner.statistics.begin_step(0)
    try:
        with pruner.statistics.calibrating():
            returned = calibrate(model)
            for loss in _losses(returned):
                if isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1:
                    _go_backward(loss, pruner.statistics)
    finally:
        model.zero_grad(set_to_none=True)
    pruner.statistics.commit()
    pruner.statistics.end_step()
    if isinstance(pruner.statistics, Curvature) and not pruner.statistics.steps:
        raise ValueError(
            f"criterion {pruner.criterion} differentiates losses twice, and has seen no finite one: let calibrate= "
            "return them before their backward passes"
        )


def _ablation_losses(
    pruner: BlockPruner, model: nn.Module, example: Example, calibrate: Callable[[nn.Module], Any] | None
) -> dict[str, Tensor]:
    if calibrate is None:
        raise ValueError(
            f"criterion {pruner.criterion} compares losses: pass calibrate=, a function that returns them, such as "
            "lambda model: (loss(model(x), y) for x, y in batches), or use IterativePruning in a Trainer"
        )

    def loss() -> Tensor:
        with torch.random.fork_rng(), torch.no_grad():  # every evaluation draws the same
            found = [torch.as_tensor(loss).double().cpu() for loss in _losses(calibrate(model))]
        if not found or any(loss.numel() != 1 for loss in found):
            raise ValueError(
                f"criterion {pruner.criterion} compares losses, and calibrate= returns none; let it return scalars, "
                "before any backward pass"
            )
        return torch.stack([loss.reshape(()) for loss in found]).mean()

    with eval_mode(model):
        return pruner.ablation_losses(model, example, loss)


def _losses(returned: Any) -> Iterable[Any]:
    if isinstance(returned, (Tensor, float)):
        return [returned]
    return returned if isinstance(returned, Iterable) else ()


def _go_backward(loss: Tensor, statistics: Statistics) -> None:
    try:
        statistics.before_backward(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        statistics.commit()
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise ValueError(
            "calibrate= returned a loss that has gone backward already; let it return losses before their backward "
            "passes, or nothing"
        ) from error
