"""The analysis of a network: traces its forward pass and finds its dependency groups.

``lightning_prune.coupling`` explains the algorithm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lightning_prune.coupling.grouping.build_coupling import build_coupling
from lightning_prune.coupling.groups import Coupling, Passes
from lightning_prune.coupling.rules.lookup import rule_of, step_of
from lightning_prune.coupling.rules.registry import Rule
from lightning_prune.coupling.symbols.constants import has_positional_settings, setting_positions, settings_at
from lightning_prune.coupling.tracing.activation_sites import record_module_output
from lightning_prune.coupling.tracing.python_calls import CallRecorder
from lightning_prune.coupling.tracing.trace import Trace
from lightning_prune.coupling.tracing.tracer import Tracer
from lightning_prune.coupling.train_mode import GradModeWatch, TrainingFlagWatch, compare_modes, overrides_mode_switch
from lightning_prune.network.example_input import Example, run_on_copy
from lightning_prune.network.tensors import named_modules, named_tensors, tensors_in


def find_coupling(
    model: nn.Module, example: Example, attention: Literal["head_dims", "heads"] = "head_dims"
) -> Coupling:
    """Find which channels of ``model`` must be removed together, by following them through a forward pass.

    Traces a pass in eval mode, and one in train mode where it may differ, on a copy; ``model`` is not modified.

    Args:
        model: Any network.
        example: The arguments of its forward pass.
        attention: The units of attention layers: "head_dims" (dimensions inside every head) or "heads" (whole heads).

    Returns:
        The groups of the network and everything that depends on their widths.

    Raises:
        ValueError: If the network has lazy parameters, or its forward pass fails on the example.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("a TorchScript module cannot be traced: prune the Python module, then script it")
    dict(named_tensors(model))  # raises for lazy parameters, which would otherwise fail like a wrong example
    try:
        coupling, heads = run_on_copy(model, example, _analyze_copy)
        if coupling.on_meta and coupling.passes.train_fails and _trains(model, example):  # train mode needs values
            coupling, heads = run_on_copy(model, example, _analyze_copy, on_meta=False)
        if attention == "heads" and heads:
            use = partial(_analyze_copy, heads=heads)
            coupling, _ = run_on_copy(model, example, use, None if coupling.on_meta else False)
    except Exception as error:
        raise ValueError(
            f"the forward pass of {type(model).__name__} failed on the example input: {str(error) or repr(error)}. "
            "Pass what its forward receives (in a Trainer: set `example_input_array` on the LightningModule)."
        ) from error
    found: Coupling = coupling
    return found


def _trains(model: nn.Module, example: Example) -> bool:
    """Whether the forward pass runs in train mode on a copy that is not on the meta device."""
    try:
        run_on_copy(model, example, lambda copy, inputs: inputs.run(copy.train()), on_meta=False)
    except Exception:
        return False
    return True


def _analyze_copy(
    copy: nn.Module, example: Example, heads: frozenset[int] = frozenset()
) -> tuple[Coupling, frozenset[int]]:
    """The coupling of ``copy``, and the numbers of the reshapes that make attention heads."""
    trace = Trace(heads=heads)
    trace.register(copy)
    trace.size_equations.tag_attributes(copy)
    plain = [module for _, module in named_modules(copy) if not isinstance(module, torch.jit.ScriptModule)]
    buffers = [(module, dict(module._buffers)) for module in plain]

    def restore() -> None:  # a forward pass may replace buffers
        for module, own in buffers:
            module._buffers.update(own)

    settings: list[Any] = []
    with TrainingFlagWatch() as mode, GradModeWatch() as grads:
        outputs = _pass(trace, copy.eval(), example, settings)
    restore()
    macs, sizes, scalars = list(trace.macs), list(trace.shapes), list(trace.scalars.found)
    steps = (step for func in trace.operations if (step := step_of(func)) is not None)
    operations = (*steps, tuple(settings))
    differs = fails = False
    unused = any(isinstance(trace.tensors[name], nn.Parameter) for name in trace.tensors.keys() - trace.reached)
    if mode.was_read or grads.was_read or unused or overrides_mode_switch(copy):
        try:
            same, with_grads = compare_modes(copy, example, restore)
            differs = not same
            if differs:
                with torch.set_grad_enabled(with_grads):
                    outputs += _pass(trace, copy.train(), example, [])
        except Exception:  # some networks need targets in train mode: only eval mode is traced then
            differs, fails = False, True
            trace.shapes, trace.scalars.found = sizes, scalars
    trace.macs = [type(term)(term.constant / example.batch, term.dims) for term in macs]
    passes = Passes(differs, fails, tuple(outputs), len(sizes), operations)
    return build_coupling(trace, passes), trace.attention_splits()


def _pass(trace: Trace, copy: nn.Module, example: Example, settings: list[Any]) -> list[tuple[int, ...]]:
    """Trace one forward pass, append the settings of its operations to ``settings``, and return its output shapes."""
    tracer = Tracer(trace, _recording_rules(settings))
    running: list[str] = []

    def begin(name: str | None) -> None:
        if name is not None:
            running.append(name)
            trace.size_equations.where = name

    def end(name: str | None, module: nn.Module, output: Any) -> None:
        if name is None:
            return
        running.pop()
        trace.size_equations.where = running[-1] if running else ""
        record_module_output(tracer, name, module, output)

    names = {id(module): name for name, module in named_modules(copy)}
    handles = [  # global hooks, which are faster than a hook on each module
        register_module_forward_pre_hook(lambda module, _inputs: begin(names.get(id(module)))),
        register_module_forward_hook(lambda module, _inputs, out: end(names.get(id(module)), module, out)),
    ]
    try:
        with CallRecorder(tracer), tracer:
            outputs = example.run(copy)
    finally:
        for handle in handles:
            handle.remove()
    for tensor in tensors_in(outputs):
        tracer.freeze(tensor, "output of the network")
        tracer.mark_reached(tensor)
    return [tuple(tensor.shape) for tensor in tensors_in(outputs)]


def _recording_rules(settings: list[Any]) -> Callable[[Any], Rule | None]:
    """``rule_of`` with rules that also append the settings of an operation; None where these may follow a width."""

    @cache
    def recording_rule_of(func: Any) -> Rule | None:
        rule, positions, positional = rule_of(func), setting_positions(func), has_positional_settings(func)
        if rule is None or not positions:
            return rule

        def recording(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            follow = positional and (tracer.parts(args[0]) or not tracer.proportions.on_meta)
            settings.append(None if follow else settings_at(positions, args))
            rule(tracer, func, args, kwargs, out)

        return recording

    return recording_rule_of
