"""Hyperparameters of a training, for TensorBoard's HPARAMS tab."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning


def describe(pruning: IterativePruning, suffix: str = "") -> dict[str, str]:
    """The pruning method as hyperparameters: name -> short string.

    Args:
        pruning: The callback.
        suffix: Suffix of the names, if several pruners share a Trainer.
    """
    parts = {
        "criterion": pruning.pruner.criterion,
        "schedule": pruning.schedule,
        "budget": pruning.pruner.budget,
        "granularity": pruning.granularity,
        "scope": pruning.pruner.scope,
    }
    return {f"pruning/{name}{suffix}": as_code(part) for name, part in parts.items()}


def saved_hyperparameters(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    """The hyperparameters that Lightning logs: those saved by the module and the data module."""
    saved: dict[str, Any] = {}
    for owner in (pl_module, trainer.datamodule):  # type: ignore[attr-defined]
        if getattr(owner, "_log_hyperparams", False):
            saved.update({name: value for name, value in owner.hparams_initial.items() if name[0] != "_"})
    return saved


def declare_columns(logger: TensorBoardLogger, params: Mapping[str, Any], metrics: Iterable[str]) -> None:
    """Declare the columns of the table before Lightning does.

    TensorBoard keeps the first table of a run. At the beginning of ``fit`` Lightning writes one with the single metric
    ``hp_metric``, so that metrics logged at the end would not be shown. Loggers with ``default_hp_metric=False`` are
    not changed.
    """
    if getattr(logger, "_default_hp_metric", True):
        experiment, start, _ = hparams(_flat(params), dict.fromkeys(metrics, 0.0))
        writer = logger.experiment._get_file_writer()
        writer.add_summary(experiment)
        writer.add_summary(start)


def as_code(part: Any) -> str:
    """A part of the method as Python code without default arguments.

    Example:
        >>> from lightning_prune.schedules import Constant
        >>> as_code(Constant(start=3))
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
    """Nested dicts with keys ``a/b``; values other than numbers and strings become strings."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
