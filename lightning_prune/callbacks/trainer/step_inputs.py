"""Input that the training step passes to the network, recorded while a copy of the module runs the step."""

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
    """Arguments of the first call of the network by the training step.

    The network is the LightningModule itself, or the one module that the step calls. A copy without a Trainer runs the
    step, so that nothing is logged and no optimizer is changed; side effects outside the module, such as printing, are
    repeated. The step may fail on the copy, for lack of a Trainer, after it has called the network.

    Raises:
        LookupError: If the step calls no network or several, or if the output of the first call does not depend on all
            trainable parameters; with the reason.
    """
    network = copy_of(pl_module)
    with isolate_rng(), isolated_forward(), pl_module.trainer.precision_plugin.forward_context():
        calls, error = _record(network, pl_module, _copied(batch))
        failure = "" if error is None else f", then fails on a copy without a Trainer: {str(error).rstrip('.')}"
        if len(calls) != 1:
            which = " and ".join(repr(name) for name in calls) or "no module"
            raise LookupError(f"its training step calls {which}{failure}")
        ((name, (args, kwargs)),) = calls.items()
        example = Example(args, kwargs, 1, module=name).cut(pl_module)
        missed = _untouched(network, example)
    if missed:
        called = f"{name!r} first" if name else "the module first"
        raise LookupError(f"its training step calls {called}, whose output does not depend on {missed[0]!r}{failure}")
    return example


def _copied(batch: Any) -> Any:
    """A copy of the batch, which the training step may change."""
    try:
        return copy.deepcopy(batch)
    except Exception:  # non-leaf tensors, generators, files
        return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, batch)


def _record(
    network: nn.Module, original: pl.LightningModule, batch: Any
) -> tuple[dict[str, Arguments], Exception | None]:
    """First arguments of each module with parameters that the training step itself calls, and the step's error."""
    found: dict[str, Arguments] = {}
    inside: list[nn.Module] = []

    def enter(name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not inside and next(module.parameters(), None) is not None:
                arguments = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
                found.setdefault(name, arguments)
            inside.append(module)

        return record

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
    """Trainable parameters on which the output for ``example`` does not depend."""
    with torch.enable_grad():
        outputs = [tensor for tensor in tensors_in(example.run(network)) if tensor.requires_grad]
        torch.autograd.backward([tensor.sum().abs() for tensor in outputs])
    return [
        name for name, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
