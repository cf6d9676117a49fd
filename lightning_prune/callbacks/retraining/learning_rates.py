"""Learning rates of all optimizers and schedulers: stored, restored and scaled."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl

_OF_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr")
_OF_SCHEDULERS = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")


def stored_rates(trainer: pl.Trainer) -> list[Any]:
    """The learning rates of all optimizers and the states of their schedulers, as plain values."""
    groups = [
        [{key: _plain(group[key]) for key in _OF_GROUPS if key in group} for group in optimizer.param_groups]
        for optimizer in trainer.strategy.optimizers
    ]
    return [groups, [deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs]]


def restore_rates(trainer: pl.Trainer, rates: list[Any]) -> None:
    """Restore the learning rates and scheduler states that ``stored_rates`` returned."""
    groups, schedulers = rates
    for optimizer, own in zip(trainer.strategy.optimizers, groups, strict=True):
        for group, values in zip(optimizer.param_groups, own, strict=True):
            for key, value in values.items():
                _set(group, key, value)
    for config, state in zip(trainer.lr_scheduler_configs, schedulers, strict=True):
        config.scheduler.load_state_dict(deepcopy(state))


def scale_rates(trainer: pl.Trainer, factor: float) -> None:
    """Multiply all learning rates, and those that schedulers will set later, by ``factor``."""
    for optimizer in trainer.strategy.optimizers:
        for group in optimizer.param_groups:
            for key in _OF_GROUPS:
                if key in group:
                    _set(group, key, group[key] * factor)
    for config in trainer.lr_scheduler_configs:
        for scheduler in _with_parts(config.scheduler):
            for name in _OF_SCHEDULERS:
                values = getattr(scheduler, name, None)
                if isinstance(values, list):
                    setattr(scheduler, name, [value * factor for value in values])
            if hasattr(scheduler, "eta_min"):
                scheduler.eta_min *= factor


def _with_parts(scheduler: Any) -> Iterator[Any]:
    """A scheduler, and those that it combines (``SequentialLR``, ``ChainedScheduler``)."""
    yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _with_parts(part)


def _set(group: dict[str, Any], key: str, value: Any) -> None:
    """Set a learning rate; in place if it is a tensor, which a compiled optimizer step may have captured."""
    if hasattr(group[key], "fill_"):
        group[key].fill_(value)
    else:
        group[key] = value


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
