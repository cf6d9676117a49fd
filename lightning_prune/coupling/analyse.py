"""From a network and an example input to its groups."""

from __future__ import annotations

from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_prune.coupling import rules_layers as _layers
from lightning_prune.coupling import rules_shape as _shape
from lightning_prune.coupling.example import Example, run_on_copy
from lightning_prune.coupling.groups import Coupling, build_coupling
from lightning_prune.coupling.rules import rule_of
from lightning_prune.coupling.trace import Trace, Tracer, named_tensors, tensors_in

_ = _layers, _shape  # imported for the rules that they register


def analyse(model: nn.Module, example: Example) -> Coupling:
    """Find which channels of ``model`` must be removed together, by following them through a forward pass.

    One pass runs in eval and one in train mode, on a copy: ``model`` is not touched.

    Args:
        model: Any network.
        example: What its forward receives.

    Raises:
        ValueError: If the network has lazy parameters, or its forward pass fails on the example.
    """
    dict(named_tensors(model))  # refuses lazy parameters before they look like a wrong example
    try:
        coupling: Coupling = run_on_copy(model, example, _analyse_copy)
    except Exception as error:
        raise ValueError(
            f"the forward pass of {type(model).__name__} failed on the example input: {error}. "
            "Pass what its forward receives (in a Trainer: set `example_input_array` on the LightningModule)."
        ) from error
    return coupling


def _analyse_copy(copy: nn.Module, example: Example) -> Coupling:
    trace = Trace()
    trace.register(copy)
    _pass(trace, copy.eval(), example)
    macs, reshapes = list(trace.macs), list(trace.reshapes)
    try:
        _pass(trace, copy.train(), example)
        trains = True
    except Exception:  # some networks want targets in train mode: then the eval pass has to be enough
        trains = False
        trace.reshapes = reshapes
    trace.macs = [type(term)(term.constant / example.batch, term.dims) for term in macs]
    return build_coupling(trace, copy, trains)


def _pass(trace: Trace, copy: nn.Module, example: Example) -> None:
    tracer = Tracer(trace, copy, rule_of)

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        return module.register_forward_hook(lambda _module, _inputs, output: tracer.returned(name, output))

    handles = [watch(name, module) for name, module in copy.named_modules()]
    try:
        with tracer:
            outputs = example.run(copy)
    finally:
        for handle in handles:
            handle.remove()
    for tensor in tensors_in(outputs):
        tracer.freeze(tensor, "output of the network")
