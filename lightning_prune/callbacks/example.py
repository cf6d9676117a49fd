"""What the forward of a LightningModule receives: its example input, or the first training batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_prune.coupling import Example, run_on_copy


def declared_example(pl_module: pl.LightningModule) -> Example | None:
    """The module's ``example_input_array``, None where it has none."""
    inputs = pl_module.example_input_array
    return None if inputs is None else Example.of(inputs).to(pl_module.device)


def example_from_batch(pl_module: pl.LightningModule, batch: Any) -> Example:
    """The part of a training batch that the forward takes.

    Raises:
        MisconfigurationException: If the forward runs on no part of the batch.
    """
    errors = []
    for inputs in _candidates(pl_module, batch):
        example = Example.of(inputs)
        try:
            run_on_copy(pl_module, example, lambda copy, arguments: arguments.run(copy.eval()))
        except Exception as error:
            errors.append(str(error))
        else:
            return example
    raise MisconfigurationException(
        f"the forward of {type(pl_module).__name__} runs on no part of the first training batch "
        f"({type(batch).__name__}): {errors[0] if errors else 'it holds no tensors'}. Set `example_input_array` on the "
        "LightningModule to what its forward receives."
    )


def _candidates(pl_module: pl.LightningModule, batch: Any) -> Iterator[Any]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict):
        names = inspect.signature(pl_module.forward).parameters
        yield {name: value for name, value in batch.items() if name in names}
        yield (batch,)
        for value in batch.values():
            yield from _candidates(pl_module, value)
    elif isinstance(batch, (list, tuple)) and batch:
        yield from _candidates(pl_module, batch[0])
        yield tuple(batch)
        yield (batch,)
