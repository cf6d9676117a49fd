"""What a training step hands to the network, seen where a copy takes the step."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_prune.network.copies import copy_of
from lightning_prune.network.example_input import Example, isolated_forward
from lightning_prune.network.tensors import tensors_in

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def first_call(pl_module: pl.LightningModule, batch: Any) -> Example:
    """The first call that the training step makes of the network: the LightningModule or the one module inside.

    A copy without a Trainer takes the step, so that nothing is logged and no optimizer is touched; what a step does
    outside of its module, such as printing, it does once more. It may fail where it needs its Trainer, if it has called
    the network by then.

    Raises:
        LookupError: With the reason, if the step calls no network, or several, or if parameters that train have no
            part in what the first call returns.
    """
    network = copy_of(pl_module)
    with isolate_rng(), isolated_forward(), pl_module.trainer.precision_plugin.forward_context():
        calls, error = _watch(network, pl_module, _own(batch))
        failure = "" if error is None else f", then fails on a copy without a Trainer: {str(error).rstrip('.')}"
        if len(calls) != 1:
            which = " and ".join(repr(name) for name in calls) or "no module"
            raise LookupError(f"its training step calls {which}{failure}")
        ((name, (args, kwargs)),) = calls.items()
        example = Example(args, kwargs, 1, module=name).cut(pl_module)
        missed = _untouched(network, example)
    if missed:
        called = f"{name!r} first" if name else "the module first"
        raise LookupError(f"its training step calls {called}, in which {missed[0]!r} has no part{failure}")
    return example


def _own(batch: Any) -> Any:
    """A copy: steps take labels out of the batch."""
    try:
        return copy.deepcopy(batch)
    except Exception:  # tensors of a graph, generators, files
        return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, batch)


def _watch(
    network: nn.Module, original: pl.LightningModule, batch: Any
) -> tuple[dict[str, Arguments], Exception | None]:
    """The first arguments of each module with parameters that the training step itself calls, and why it failed."""
    found: dict[str, Arguments] = {}
    inside: list[nn.Module] = []

    def enter(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not inside and next(module.parameters(), None) is not None:
                arguments = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
                found.setdefault(name, arguments)
            inside.append(module)

        return note

    def leave(*_: Any) -> None:
        inside.pop()

    hooks = []
    for name, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
        hooks.append(module.register_forward_hook(leave, always_call=True))
    counted = is_param_in_hook_signature(original.training_step, "batch_idx", min_args=2)
    error = None
    try:
        network.training_step(*((batch, 0) if counted else (batch,)))  # type: ignore[operator]
    except Exception as failure:
        error = failure
    for hook in hooks:
        hook.remove()
    return found, error


def _untouched(network: nn.Module, example: Example) -> list[str]:
    """Parameters of a copy that train, but get no gradient from the outputs of ``example``."""
    with torch.enable_grad():
        outputs = [tensor for tensor in tensors_in(example.run(network)) if tensor.requires_grad]
        torch.autograd.backward([tensor.sum().abs() for tensor in outputs])
    return [
        name for name, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
