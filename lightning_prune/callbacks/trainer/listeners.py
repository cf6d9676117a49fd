"""The other callbacks of a Trainer: found, notified of events, reset after them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch

from lightning_prune.callbacks.trainer.lightning_packages import MODEL_CHECKPOINTS, MisconfigurationException

T = TypeVar("T")


def callbacks_of(trainer: pl.Trainer, cls: type[T]) -> list[T]:
    """The callbacks of ``trainer`` that are instances of ``cls``, in their order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, cls)]  # type: ignore[attr-defined]


def notify(trainer: pl.Trainer, event: str, *args: Any) -> None:
    """Call the method ``event`` of every callback that has it, in their order."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        listener = getattr(callback, event, None)
        if listener is not None:
            listener(trainer, *args)


def forget_best(trainer: pl.Trainer) -> None:
    """Let ``ModelCheckpoint`` and ``EarlyStopping`` look for the best network of the new size.

    The next checkpoint saved replaces the old. Until the network is measured again its metric is not a number: a
    checkpoint saved before that has nothing to show.
    """
    for stopping in trainer.early_stopping_callbacks:
        worst = torch.tensor(torch.inf if stopping.mode == "min" else -torch.inf)
        stopping.best_score, stopping.wait_count = worst.to(stopping.best_score), 0
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, MODEL_CHECKPOINTS) and callback.monitor is not None:
            worst = torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)
            callback.best_k_models = {path: worst for path in callback.best_k_models}
            callback.kth_value, callback.best_model_score, callback.best_model_path = worst, None, ""
            if callback.monitor in trainer.callback_metrics:
                trainer.callback_metrics[callback.monitor] = torch.tensor(torch.nan)


@contextmanager
def as_misconfiguration() -> Iterator[None]:
    """Turn the errors of the rooms below into the one that Lightning's users expect."""
    try:
        yield
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error
