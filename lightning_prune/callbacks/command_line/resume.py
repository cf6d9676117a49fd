"""The command that resumes an interrupted ``fit``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_prune.callbacks.trainer.lightning_packages import MODEL_CHECKPOINTS


def how_to_resume(trainer: pl.Trainer, arguments: Sequence[str]) -> str:
    """What to run to resume the training from its newest checkpoint.

    No checkpoint is written at the interruption itself: it may come in the middle of an optimizer step or of a pruning
    event, where the network and its optimizer do not fit together.

    Args:
        trainer: The interrupted Trainer.
        arguments: Arguments of the command line, with the subcommand.
    """
    newest = newest_checkpoint(trainer)
    if newest is not None:
        return f"To resume: {shlex.join(['lightning-prune', *_without_checkpoint(arguments), f'--ckpt_path={newest}'])}"
    given = _given_checkpoint(arguments)
    if given is not None:
        return f"There is no newer checkpoint. To resume: {shlex.join(['lightning-prune', *arguments])}"
    if any(_checkpoints(trainer)):
        return "There is no checkpoint to resume from yet: ModelCheckpoint writes the first one after an epoch."
    return "There is no checkpoint to resume from: add the callback ModelCheckpoint to the configuration."


def newest_checkpoint(trainer: pl.Trainer) -> str | None:
    """Path of the newest full checkpoint that the Trainer's ``ModelCheckpoint`` callbacks have written, if any."""
    written = {Path(path) for callback in _checkpoints(trainer) for path in _paths(callback) if path}
    existing = [path for path in written if path.exists()]
    if not existing:
        return None
    newest = max(existing, key=lambda path: path.stat().st_mtime_ns)
    inside = os.path.relpath(newest)
    return str(newest) if inside.startswith(os.pardir) else inside


def _checkpoints(trainer: Any) -> Iterator[Any]:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, MODEL_CHECKPOINTS) and not callback.save_weights_only:
            yield callback


def _paths(callback: Any) -> list[str]:
    return [callback.last_model_path, callback.best_model_path, *callback.best_k_models]


def _without_checkpoint(arguments: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for argument, before in zip(arguments, ["", *arguments[:-1]], strict=True):
        if "--ckpt_path" not in (argument, before) and not argument.startswith("--ckpt_path="):
            kept.append(argument)
    return kept


def _given_checkpoint(arguments: Sequence[str]) -> str | None:
    return next((argument for argument in arguments if argument.partition("=")[0] == "--ckpt_path"), None)
