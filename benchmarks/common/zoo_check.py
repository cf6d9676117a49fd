"""Prune a network of torchvision with one call and no hint, and try everything that has to hold afterwards."""

from __future__ import annotations

import copy
import gc
import math
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common.zoo import build, family, inputs, loss_of, randomise, raw_outputs, run, task, train_outputs
from common.zoo_halved import allowed, halved
from lightning_prune import Report, Scope, prune_once
from lightning_prune.coupling import find_coupling
from lightning_prune.network.example_input import Example
from lightning_prune.surgery.apply import zero_removed
from lightning_prune.surgery.plan import Plan

LARGEST_ERROR = 1e-5  # of what is pruned against what is masked, in float32
LARGE_PARAMS = 250_000_000  # networks above are compared without a second copy
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}

Prune = Callable[..., Report]


def check(name: str, flavour: str = "small", prune: Prune = prune_once) -> dict[str, Any]:
    """What pruning one network gives, in eval and in train mode.

    Args:
        name: As torchvision lists it.
        flavour: See ``build``.
        prune: What prunes.

    Returns:
        A row that goes into JSON. ``error`` is None where ``prune_once`` ran through; ``broken`` lists what does not
        hold afterwards. ``kept`` and ``halved`` are shares of the parameters, ``prunable`` the share in tensors of
        which at least one dimension lost something. ``relative_error`` compares with a copy in which the same channels
        are zero, ``exact_error`` does the same where only groups are pruned that no norm runs across (None where all
        groups are exact, or none is).
    """
    row: dict[str, Any] = {"name": name, "family": family(name), "task": task(name), "flavour": flavour}
    row.update(
        error=None,
        broken=[],
        frozen={},
        inexact={},
        halved=None,
        allowed=allowed(name),
        relative_error=None,
        exact_error=None,
    )
    started = time.perf_counter()
    try:
        _check(row, name, flavour, prune)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:400]}"
        last = traceback.extract_tb(error.__traceback__)[-1]
        row["where"] = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        row["broken"].append("prune_once fails" if "params" not in row else "the check fails")
    row["wall_s"] = round(time.perf_counter() - started, 2)
    gc.collect()
    return row


def problems(row: dict[str, Any]) -> list[str]:
    """What ``check`` found not to be as it should, an empty list if all is."""
    if row["error"]:
        return [row["error"]]
    found = list(row["broken"])
    error = row["exact_error"] if row["inexact"] else row["relative_error"]
    if error is None:
        found.append("no group is exact" if row["inexact"] else "the outputs were not compared")
    elif not error <= LARGEST_ERROR:
        found.append(f"relative error {error:.1e}")
    if row["kept"] > row["allowed"] * row["halved"]:
        found.append(f"keeps {row['kept'] / row['halved']:.2f} x the halved reference")
    if row["halved"] > 1.1 * row["kept"]:
        found.append(f"keeps only {row['kept'] / row['halved']:.2f} x the halved reference")
    found += [f"{len(names)} frozen: {reason}" for reason, names in row["frozen"].items() if "no rule for" in reason]
    return found


def _check(row: dict[str, Any], name: str, flavour: str, prune: Prune) -> None:
    model, example = randomise(build(name, flavour)), inputs(name, flavour)
    params = sum(parameter.numel() for parameter in model.parameters())
    row["halved"] = round(halved(name, model) / params, 4)
    _unusual_state(model)
    before = _state(model)
    mode = copy.copy(before["modes"])

    large = params > LARGE_PARAMS
    if large:  # mask, then remove what is zero: the lowest scores are those that were masked
        report = prune(model, example, dry_run=True)
        zero_removed(model, report.plan)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        expected, expected_train = _both(model, example, row)
        _set_modes(model, mode)
        for buffer_name, buffer in model.named_buffers():  # a pass in train mode has moved the norms' statistics
            buffer.copy_(buffers[buffer_name])
        masked: nn.Module | None = None
    else:
        masked = copy.deepcopy(model)
    started = time.perf_counter()
    again = prune(model, example)
    row["prune_s"] = round(time.perf_counter() - started, 3)
    if large and not _same_plan(again.plan, report.plan):
        row["broken"].append("the plan changes when what it removes is zero")
    report = again
    row.update(_figures(model, report, params))
    after = _state(model)
    row["broken"] += [f"{what} changed: {_first_difference(before[what], after[what])}" for what in before
                      if before[what] != after[what]]  # fmt: skip
    if masked is not None:
        zero_removed(masked, report.plan)
        expected, expected_train = _both(masked, example, row)
        del masked
    _compare(row, "relative_error", model, example, expected)
    _try_training(row, model, example, expected_train)
    del model, expected
    gc.collect()
    if report.inexact:
        _check_exact_groups(row, name, flavour, prune)


def _both(model: nn.Module, example: Any, row: dict[str, Any]) -> tuple[list[Tensor], list[tuple[int, ...]]]:
    model.eval()
    outputs = raw_outputs(model, example)
    if not outputs or any(out.numel() == 0 or not out.isfinite().all() or out.std() < 1e-4 for out in outputs):
        row["broken"].append("the masked network's outputs are empty, not finite or all alike: they prove nothing")
    row["smallest_std"] = min((float(out.std()) for out in outputs), default=0.0)
    with torch.no_grad():
        return outputs, [tuple(out.shape) for out in train_outputs(model, example)]


def _compare(row: dict[str, Any], key: str, model: nn.Module, example: Any, expected: list[Tensor]) -> None:
    model.eval()
    try:
        found = raw_outputs(model, example)
        with torch.no_grad():
            run(model, example)  # with scores and overlaps, for detectors
    except Exception as error:
        row["broken"].append(f"eval mode fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")
        return
    if [out.shape for out in found] != [out.shape for out in expected]:
        row["broken"].append("the shapes of the outputs changed in eval mode")
        return
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
    row[key] = max(errors) if all(math.isfinite(error) for error in errors) else math.inf


def _try_training(row: dict[str, Any], model: nn.Module, example: Any, shapes: list[tuple[int, ...]]) -> None:
    try:
        outputs = train_outputs(model, example)
        if [tuple(out.shape) for out in outputs] != shapes:
            row["broken"].append("the shapes of the outputs changed in train mode")
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        loss_of(model, outputs).backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        row["without_gradient"] = sum(p.grad is None for p in trained)
        if any(p.grad is not None and p.grad.shape != p.shape for p in trained):
            row["broken"].append("a gradient has another shape than its parameter")
        optimizer.step()
        if row["without_gradient"] > 0.1 * len(trained):
            row["broken"].append(f"{row['without_gradient']} of {len(trained)} parameters got no gradient")
    except Exception as error:
        row["broken"].append(f"training fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")


def scope_of_exact_groups(model: nn.Module, example: Any) -> Scope:
    """All groups but those that a norm runs across."""
    coupling = find_coupling(model, Example.of(example))
    touched = {m.tensor for g in coupling.groups.values() if g.inexact for m in g.members if not m.reads}
    return Scope(exclude=[path for path, _ in model.named_parameters() if path in touched])


def _check_exact_groups(row: dict[str, Any], name: str, flavour: str, prune: Prune) -> None:
    """The same again without the groups that a norm runs across."""
    model, example = randomise(build(name, flavour)), inputs(name, flavour)
    scope = scope_of_exact_groups(model, example)
    large = row["params"] > LARGE_PARAMS
    masked = model if large else copy.deepcopy(model)
    try:
        report = prune(model, example, scope=scope, dry_run=large)
    except ValueError as error:
        row.update(exact_groups=0, no_exact_groups=str(error)[:200])
        return
    row["exact_groups"] = len(report.widths)
    if report.inexact:
        row["broken"].append(f"the scope leaves {len(report.inexact)} inexact groups in")
    zero_removed(masked, report.plan)
    expected = raw_outputs(masked.eval(), example)
    del masked
    if large:
        prune(model, example, scope=scope)
    _compare(row, "exact_error", model, example, expected)


def _figures(model: nn.Module, report: Report, params: int) -> dict[str, Any]:
    left = sum(parameter.numel() for parameter in model.parameters())
    frozen, inexact = defaultdict(list), defaultdict(list)
    for name, reason in report.frozen.items():
        frozen[reason].append(name)
    for name, reason in report.inexact.items():
        inexact[reason].append(name)
    return {
        "params": params,
        "groups": len(report.widths),
        "kept": round(left / params, 4),
        "macs_kept": round(report.after.macs / max(report.before.macs, 1), 4),
        "prunable": round(_prunable(model, report.plan, params), 4),
        "frozen": dict(frozen),
        "inexact": dict(inexact),
    }


def _prunable(model: nn.Module, plan: Plan, params: int) -> float:
    """Share of the original parameters in tensors that lost something; of their old sizes."""
    lost = 0
    for name, parameter in model.named_parameters():
        if name not in plan.keep:
            lost += parameter.numel()
    return 1 - lost / params


def _unusual_state(model: nn.Module) -> None:
    """Modes, flags and memory formats that are not the default, so that a reset of them is seen."""
    views = any("keypoint" in path for path, _ in model.named_modules())  # torchvision's loss views what it gets
    for parameter in model.parameters():
        if parameter.dim() in FORMATS and not views:
            parameter.data = parameter.data.contiguous(memory_format=FORMATS[parameter.dim()])
    for number, module in enumerate(model.modules()):
        module.training = number % 3 != 1
    last = list(model.parameters())[-1]
    last.requires_grad_(False)


def _state(model: nn.Module) -> dict[str, Any]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "order of the parameters": [name for name, _ in model.named_parameters()],
        "identity of the parameters": [id(parameter) for parameter in model.parameters()],
        "dtypes": {name: tensor.dtype for name, tensor in tensors},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()},
        "channels_last": {
            name: tensor.is_contiguous(memory_format=FORMATS[tensor.dim()])
            for name, tensor in tensors if tensor.dim() in FORMATS
        },
    }  # fmt: skip


def _set_modes(model: nn.Module, modes: dict[str, bool]) -> None:
    for name, module in model.named_modules():
        module.training = modes[name]


def _first_difference(before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        return next(
            (f"{key} {before.get(key)} -> {after.get(key)}" for key in before if before.get(key) != after.get(key)),
            f"new: {sorted(set(after) - set(before))[:3]}",
        )
    return "another list"


def _same_plan(a: Plan, b: Plan) -> bool:
    return a.keep.keys() == b.keep.keys() and all(
        a.keep[name].keys() == b.keep[name].keys()
        and all(torch.equal(a.keep[name][dim], b.keep[name][dim]) for dim in a.keep[name])
        for name in a.keep
    )
