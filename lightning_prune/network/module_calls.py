"""Records how one forward pass calls the modules of a network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import tensors_in


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module.

    Attributes:
        misfit: Why an identity cannot replace the module in this call; None if it can.
        macs: Multiply-accumulates of the call for one example.
    """

    misfit: str | None
    macs: int


def record_module_calls(
    copy: nn.Module, inputs: Example, names: Collection[str]
) -> tuple[dict[str, list[ModuleCall]], int, list[Any]]:
    """Run a forward pass in eval mode and record the calls of modules.

    Args:
        copy: A copy of the network; hooks are left on it.
        inputs: The arguments of its forward pass.
        names: Qualified names of the modules.

    Returns:
        Module name -> its calls, the multiply-accumulates of the pass for one example, and the shapes of the outputs.
    """
    calls: dict[str, list[ModuleCall]] = {}
    counter, started = FlopCounterMode(display=False), dict[str, list[int]]()

    def macs(flops: int) -> int:
        return round(flops / 2 / inputs.batch)

    def before(name: str) -> Any:
        return lambda *_: started.setdefault(name, []).append(counter.get_total_flops())

    def after(name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            flops = counter.get_total_flops() - started[name].pop()
            calls.setdefault(name, []).append(ModuleCall(_misfit(args, kwargs, output), macs(flops)))

        return record

    for name in names:
        module = copy.get_submodule(name)
        module.register_forward_pre_hook(before(name))
        module.register_forward_hook(after(name), with_kwargs=True)
    with counter:
        output = inputs.run(copy.eval())
    return calls, macs(counter.get_total_flops()), shapes_of(output)


def shapes_of(output: Any) -> list[Any]:
    """The shapes of all tensors in ``output``."""
    return [tuple(tensor.shape) for tensor in tensors_in(output)]


def _misfit(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> str | None:
    if not args:
        return "its input is not its first positional argument; call it as block(x, mask=mask)"
    if not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
        return "its first argument or its output is not one tensor"
    if args[0].shape != output.shape:
        return f"it turns {tuple(args[0].shape)} into {tuple(output.shape)}"
    if args[0].dtype != output.dtype:
        return f"it turns {args[0].dtype} into {output.dtype}"
    others = [tensor for tensor in tensors_in([*args[1:], *kwargs.values()]) if tensor is not args[0]]
    if any((tensor.shape, tensor.dtype) == (output.shape, output.dtype) for tensor in others):
        return (
            "several of its inputs have the shape of its output, so it is not known which one an identity "
            "returns; give an example in which their shapes differ"
        )
    return None
