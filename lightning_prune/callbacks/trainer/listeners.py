"""The callbacks of a Trainer: found by class, notified of events, reset after them."""

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
    """Call the method ``event`` of every callback that implements it, in their order."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        listener = getattr(callback, event, None)
        if listener is not None:
            listener(trainer, *args)


def reset_best_scores(trainer: pl.Trainer) -> None:
    """Reset the best scores of ``ModelCheckpoint`` and ``EarlyStopping`` after the size of the network has changed.

    The next checkpoint replaces the earlier ones. Until the next validation the monitored metric is NaN, so that a
    checkpoint saved before it is not ranked by the metric of the earlier network.
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
    """Raise ``ValueError`` of the packages below as Lightning's ``MisconfigurationException``."""
    try:
        yield
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error
