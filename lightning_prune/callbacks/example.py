"""What the forward of a LightningModule receives: its example input, or what is in the first training batch."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from lightning_prune.callbacks.packages import MisconfigurationException
from lightning_prune.coupling import Example, run_on_copy
from lightning_prune.sharded import is_sharded


def declared_example(pl_module: pl.LightningModule) -> Example | None:
    """The module's ``example_input_array``, None where it has none.

    Raises:
        MisconfigurationException: If the forward does not run on it.
    """
    inputs = pl_module.example_input_array
    if inputs is None or is_sharded(pl_module):
        return None
    example = Example.of(inputs, pl_module).to(pl_module.device)
    try:
        _run(pl_module, example)
    except Exception as error:
        raise MisconfigurationException(
            f"the forward of {type(pl_module).__name__} fails on its `example_input_array`: {error}. A tuple is "
            "positional, a dict is keyword, anything else is the one argument."
        ) from error
    return example


def example_from_batch(pl_module: pl.LightningModule, batch: Any, needed: bool) -> Example | None:
    """The part of a training batch that the forward takes; None where it takes none and none is ``needed``.

    Where none of its parts will do, a copy runs the training step to see what that hands to the forward or, if the
    LightningModule calls but one module that trains, to that.

    Masks need no forward pass; without an example their reports say nothing about MACs. Nor do those of networks of
    which every rank holds a part: these have no copies to run.

    Raises:
        MisconfigurationException: If an example is needed and the forward runs on no part of the batch.
    """
    if is_sharded(pl_module) and not needed:
        return None
    errors = []
    for inputs in _candidates(pl_module, batch):
        example = Example.of(inputs, pl_module)
        try:
            _run(pl_module, example)
        except Exception as error:
            errors.append(str(error))
        else:
            return example
    if not needed:
        return None
    seen = _seen_in_training_step(pl_module, batch)
    if seen is not None:
        return seen
    raise MisconfigurationException(
        f"the forward of {type(pl_module).__name__} runs on no part of the first training batch "
        f"({type(batch).__name__}): {errors[0] if errors else 'it holds no tensors'}. Nor does its training step show "
        "what it receives. Define `forward`, and set `example_input_array` on the LightningModule to its input."
    )


def _run(pl_module: pl.LightningModule, example: Example) -> None:
    run_on_copy(pl_module, example, lambda copy, arguments: arguments.run(copy.eval()))


def _candidates(pl_module: pl.LightningModule, batch: Any) -> Iterator[Any]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        takes = inspect.signature(pl_module.forward).parameters
        anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
        yield {name: value for name, value in batch.items() if anything or name in takes}
        yield (batch,)
        for value in batch.values():
            yield from _candidates(pl_module, value)
    elif isinstance(batch, (list, tuple)) and batch:
        yield from _candidates(pl_module, batch[0])
        yield tuple(batch)
        yield (batch,)


def _seen_in_training_step(pl_module: pl.LightningModule, batch: Any) -> Example | None:
    """What the training step hands to the network when it calls it for the first time.

    A copy without a Trainer takes the step, so that nothing is logged and no optimizer is touched; it may fail where it
    needs one, for by then the network has been called as a rule.
    """
    try:
        batch = copy.deepcopy(batch)  # steps take labels out of it
        step = Example((batch, 0), {}, 1)
        calls = run_on_copy(pl_module, step, lambda module, arguments: _calls(module, *arguments.args), on_meta=False)
    except Exception:
        return None
    name = "" if "" in calls else next(iter(calls)) if len(calls) == 1 else None
    if name is None:
        return None
    args, kwargs = calls[name]
    example = Example(args, kwargs, 1, module=name).cut(pl_module)
    try:
        _run(pl_module, example)
    except Exception:
        return None
    return example


def _calls(pl_module: nn.Module, batch: Any, batch_idx: int) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """The first arguments of each module with trained parameters that the training step itself calls."""
    found: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    inside: list[nn.Module] = []

    def enter(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not inside and any(parameter.requires_grad for parameter in module.parameters()):
                found.setdefault(name, (args, kwargs))
            inside.append(module)

        return note

    def leave(*_: Any) -> None:
        inside.pop()

    for name, module in pl_module.named_modules():
        module.register_forward_pre_hook(enter(name), with_kwargs=True)
        module.register_forward_hook(leave, always_call=True)
    takes_index = len(inspect.signature(pl_module.training_step).parameters) > 1  # type: ignore[arg-type]
    try:
        pl_module.training_step(*((batch, batch_idx) if takes_index else (batch,)))  # type: ignore[operator]
    except Exception:
        if not found:
            raise
    return found
