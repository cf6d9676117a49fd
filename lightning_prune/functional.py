"""``prune_once``: one pruning event without a Trainer."""

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
        model: The network; mode, devices, dtypes, ``requires_grad`` flags and parameter order do not change. Its state
            dicts then include what was pruned, for ``load_pruned``.
        example_inputs: Arguments of ``forward``: a tuple is positional, a dict is keyword, anything else is the only
            argument.
        granularity: Structures that are pruned. ``Channels()`` (the default) and ``Blocks()`` are removed, weights of
            ``Weights()`` and ``NM(2, 4)`` are masked.
        criterion: Saliency criterion, as an object or as the name of one without arguments; ``Magnitude()`` by default.
        budget: Target size; ``Ratio(0.5)`` by default. ``NM`` takes no budget.
        scope: Modules and parameters that may be pruned; all by default.
        calibrate: Function that runs the model on calibration data, for criteria that need activations, gradients or
            losses. It returns losses for backward passes, such as
            ``lambda model: (loss(model(x), y) for x, y in batches)``, or runs the backward passes itself (not for
            ``Hessian`` and ``GraSP``, which differentiate twice); for criteria that only use activations, it runs
            forward passes. Gradients are set to None afterwards; batch-norm statistics are updated if the model is in
            train mode. For ``Sensitivity`` it runs in eval mode and without gradients, once for the whole network and
            once for each block that can be removed, and the mean losses are compared.
        dry_run: Only report what would be pruned; the model is not changed.

    Returns:
        The report of what was pruned, or would be with ``dry_run=True``.

    Raises:
        ValueError: If an argument has the wrong type or does not fit the network; the model is not changed then.

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
        raise ValueError(
            f"prune_once granularity={granularity!r} regrows weights during training; use IterativePruning"
        )
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
            "forward and backward passes of the model, or use IterativePruning in a Trainer"
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
            f"criterion {pruner.criterion} differentiates losses twice, and received no finite loss: let calibrate= "
            "return losses before their backward passes"
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
        with torch.random.fork_rng(), torch.no_grad():  # the same random numbers in every evaluation
            found = [torch.as_tensor(loss).double().cpu() for loss in _losses(calibrate(model))]
        if not found or any(loss.numel() != 1 for loss in found):
            raise ValueError(
                f"criterion {pruner.criterion} compares losses, but calibrate= returned none; let it return scalars, "
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
            "calibrate= returned a loss whose backward pass has run already; let it return losses before their "
            "backward passes, or return nothing"
        ) from error
