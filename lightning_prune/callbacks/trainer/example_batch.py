"""Example input of a LightningModule: its ``example_input_array``, or a part of the first training batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_prune.callbacks.trainer.lightning_packages import MisconfigurationException
from lightning_prune.callbacks.trainer.step_inputs import first_call
from lightning_prune.network.example_input import Example, run_on_copy
from lightning_prune.network.sharded import is_sharded


def declared_example(pl_module: pl.LightningModule) -> Example | None:
    """The module's ``example_input_array``; None if it has none.

    Raises:
        MisconfigurationException: If ``forward`` fails on it.
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
    """The part of a training batch that ``forward`` accepts; None if it accepts none and none is ``needed``.

    If an example is needed and no part is accepted, it is the input that the training step passes to the network, see
    ``first_call``.

    Masks need no forward pass; without an example their reports lack MACs, as do those of sharded networks, which
    cannot be copied.

    Raises:
        MisconfigurationException: If an example is needed and ``forward`` accepts no part of the batch.
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
    try:
        return first_call(pl_module, batch)
    except Exception as error:
        reason = errors[0] if errors else "it contains no tensors"
        raise MisconfigurationException(
            f"the forward of {type(pl_module).__name__} runs on no part of the first training batch "
            f"({type(batch).__name__}): {reason}; and {error}. Define `forward` to run the network, and set "
            "`example_input_array` on the LightningModule to an input of it."
        ) from error


def _run(pl_module: pl.LightningModule, example: Example) -> None:
    run_on_copy(pl_module, example, lambda copy, arguments: arguments.run(copy.eval()))


def _candidates(pl_module: pl.LightningModule, batch: Any) -> Iterator[Any]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        accepted = inspect.signature(pl_module.forward).parameters
        keywords = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        named = {name: value for name, value in batch.items() if name in accepted}
        if named:
            yield named
        if keywords:
            yield dict(batch)
        yield (dict(batch),)
        for value in batch.values():
            yield from _candidates(pl_module, value)
    elif isinstance(batch, (list, tuple)) and batch:
        yield from _candidates(pl_module, batch[0])
        yield tuple(batch)
        yield (batch,)
