"""From a network and an example input to its groups."""

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

    A pass in eval mode is followed, and one in train mode where that may differ, on a copy: ``model`` is not touched.

    Args:
        model: Any network.
        example: What its forward receives.
        attention: Whether the units of attention layers are dimensions inside every head, or whole heads.

    Raises:
        ValueError: If the network has lazy parameters, or its forward pass fails on the example.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("a TorchScript module cannot be followed: prune the Python module, then script it")
    dict(named_tensors(model))  # refuses lazy parameters before they look like a wrong example
    try:
        coupling, heads = run_on_copy(model, example, _analyse_copy)
        if coupling.on_meta and coupling.passes.train_fails and _trains(model, example):  # it needs values there
            coupling, heads = run_on_copy(model, example, _analyse_copy, on_meta=False)
        if attention == "heads" and heads:
            use = partial(_analyse_copy, heads=heads)
            coupling, _ = run_on_copy(model, example, use, None if coupling.on_meta else False)
    except Exception as error:
        raise ValueError(
            f"the forward pass of {type(model).__name__} failed on the example input: {str(error) or repr(error)}. "
            "Pass what its forward receives (in a Trainer: set `example_input_array` on the LightningModule)."
        ) from error
    found: Coupling = coupling
    return found


def _trains(model: nn.Module, example: Example) -> bool:
    """Whether the forward pass runs in train mode on a copy with values."""
    try:
        run_on_copy(model, example, lambda copy, inputs: inputs.run(copy.train()), on_meta=False)
    except Exception:
        return False
    return True


def _analyse_copy(
    copy: nn.Module, example: Example, heads: frozenset[int] = frozenset()
) -> tuple[Coupling, frozenset[int]]:
    """The analysis, and the numbers of the reshapes that make heads."""
    trace = Trace(heads=heads)
    trace.register(copy)
    trace.size_equations.tag_attributes(copy)
    plain = [module for _, module in named_modules(copy) if not isinstance(module, torch.jit.ScriptModule)]
    buffers = [(module, dict(module._buffers)) for module in plain]

    def restore() -> None:  # a forward pass may put new tensors in their place
        for module, own in buffers:
            module._buffers.update(own)

    settings: list[Any] = []
    with TrainingFlagWatch() as mode, GradModeWatch() as grads:
        outputs = _pass(trace, copy.eval(), example, settings)
    restore()
    macs, sizes, scalars = list(trace.macs), list(trace.shapes), list(trace.scalars.found)
    steps = (step for func in trace.operations if (step := step_of(func)) is not None)
    operations = (*steps, tuple(settings))
    apart = fails = False
    unused = any(isinstance(trace.tensors[name], nn.Parameter) for name in trace.tensors.keys() - trace.reached)
    if mode.asked or grads.asked or unused or overrides_mode_switch(copy):
        try:
            same, with_grads = compare_modes(copy, example, restore)
            apart = not same
            if apart:
                with torch.set_grad_enabled(with_grads):
                    outputs += _pass(trace, copy.train(), example, [])
        except Exception:  # some networks want targets in train mode: then the eval pass has to be enough
            apart, fails = False, True
            trace.shapes, trace.scalars.found = sizes, scalars
    trace.macs = [type(term)(term.constant / example.batch, term.dims) for term in macs]
    passes = Passes(apart, fails, tuple(outputs), len(sizes), operations)
    return build_coupling(trace, passes), trace.attention_splits()


def _pass(trace: Trace, copy: nn.Module, example: Example, settings: list[Any]) -> list[tuple[int, ...]]:
    """Follow one forward pass; return the shapes of its outputs, and add to ``settings``."""
    tracer = Tracer(trace, _noting(settings))
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
    handles = [  # for all modules at once, which is faster than one by one
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


def _noting(settings: list[Any]) -> Callable[[Any], Rule | None]:
    """``rule_of``, with rules that also note what an operation is set to; None where that may follow a width."""

    @cache
    def noting_rule_of(func: Any) -> Rule | None:
        rule, places, cuts = rule_of(func), setting_positions(func), has_positional_settings(func)
        if rule is None or not places:
            return rule

        def noting(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            follow = cuts and (tracer.parts(args[0]) or not tracer.proportions.on_meta)  # a real pass: values
            settings.append(None if follow else settings_at(places, args))
            rule(tracer, func, args, kwargs, out)

        return noting

    return noting_rule_of
