"""The row of a training in TensorBoard's HPARAMS tab."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning


def describe(pruning: IterativePruning, suffix: str = "") -> dict[str, str]:
    """The method in short strings, for a table.

    Args:
        pruning: The pruner.
        suffix: What is appended to the names, where several pruners share a Trainer.
    """
    parts = {
        "criterion": pruning.pruner.criterion,
        "schedule": pruning.schedule,
        "budget": pruning.pruner.budget,
        "granularity": pruning.granularity,
        "scope": pruning.pruner.scope,
    }
    return {f"pruning/{name}{suffix}": in_words(part) for name, part in parts.items()}


def saved_hyperparameters(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    """What Lightning itself logs: hyperparameters that the module and the datamodule have saved."""
    saved: dict[str, Any] = {}
    for owner in (pl_module, trainer.datamodule):  # type: ignore[attr-defined]
        if getattr(owner, "_log_hyperparams", False):
            saved.update({name: value for name, value in owner.hparams_initial.items() if name[0] != "_"})
    return saved


def announce(logger: TensorBoardLogger, params: Mapping[str, Any], metrics: Iterable[str]) -> None:
    """Name the columns of the table before Lightning does.

    TensorBoard keeps the first table that a run writes. At the beginning of ``fit`` Lightning writes one with the
    single metric ``hp_metric``; metrics that come at the end would never be shown. A logger that was told to leave
    this out (``default_hp_metric=False``) is left to its user.
    """
    if getattr(logger, "_default_hp_metric", True):
        experiment, start, _ = hparams(_flat(params), dict.fromkeys(metrics, 0.0))
        writer = logger.experiment._get_file_writer()
        writer.add_summary(experiment)
        writer.add_summary(start)


def in_words(part: Any) -> str:
    """A part of the method as one would write it: defaults are left out.

    Example:
        >>> from lightning_prune.schedules import Constant
        >>> in_words(Constant(start=3))
        'Constant(start=3)'
    """
    if not is_dataclass(part):
        own = type(part).__str__ is not object.__str__ or type(part).__repr__ is not object.__repr__
        return str(part) if own else type(part).__name__
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(part)}
    values = {name: getattr(part, name) for name in defaults}
    written = ", ".join(f"{name}={value!r}" for name, value in values.items() if value != defaults[name])
    return f"{type(part).__name__}({written})"


def _flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as ``a/b``; everything but numbers and strings as a string."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
