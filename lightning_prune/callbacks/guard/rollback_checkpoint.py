"""Checkpoint of an accepted network, which a running training can be rolled back to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from itertools import chain, repeat
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_prune.callbacks.loading import averaged_copies, synchronous_io
from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning
from lightning_prune.callbacks.retraining.rewind import Rewind
from lightning_prune.callbacks.trainer.lightning_packages import MODEL_CHECKPOINTS, Callback, MisconfigurationException
from lightning_prune.callbacks.trainer.listeners import reset_best_scores
from lightning_prune.callbacks.trainer.strategies import is_sharding, reset_compiled, unwrapped
from lightning_prune.network.averages import copies_held_by
from lightning_prune.network.tensors import named_tensors

_KEY = "accepted"  # key of the entries that other checkpoints do not have


@dataclass(frozen=True)
class RollbackCheckpoint:
    """Checkpoint file of an accepted network.

    Attributes:
        path: Path of the file.
        epoch: Epoch in which the network was validated.
        own: Whether this process wrote the file, which may then be unpickled with arbitrary objects of the user's
            module.
    """

    path: str
    epoch: int
    own: bool = False

    @classmethod
    def write(cls, trainer: pl.Trainer, pl_module: pl.LightningModule, path: str, epoch: int) -> RollbackCheckpoint:
        """Write a checkpoint with the additional state that a running training needs; all ranks take part."""
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        checkpoint[_KEY] = {
            "network": pl_module.state_dict(),  # averaging callbacks may replace it in the checkpoint
            "trained": _trained_names(trainer, pl_module),
            "copies": [copy.state_dict() for copy in averaged_copies(pl_module)],
            "counters": [0 if counter is None else int(counter) for counter in _counters(trainer)],
            "metrics": {name: float(v) for name, v in trainer.callback_metrics.items() if v.numel() == 1},
        }
        if trainer.is_global_zero:
            synchronous_io(trainer).save_checkpoint(checkpoint, path)
        trainer.strategy.barrier("RollbackCheckpoint.write")
        return cls(path, epoch, own=True)

    def restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Restore the network, its averaged copies, its optimizers and the pruners; returns the checkpoint.

        Training continues from its current position: learning rates, their schedulers, loops and data do not change.
        """
        load = trainer.strategy.load_checkpoint
        trusted = {"weights_only": False} if self.own and "weights_only" in signature(load).parameters else {}
        checkpoint: dict[str, Any] = load(self.path, **trusted)
        trainer.strategy.barrier("RollbackCheckpoint.restore")  # all ranks have read the file, which may be removed now
        saved = checkpoint[_KEY]
        with unwrapped(trainer):
            for optimizer in trainer.strategy.optimizers:
                optimizer.zero_grad(set_to_none=True)
            _load(pl_module, saved["network"], pl_module.strict_loading)
            states = chain(saved["copies"], repeat(saved["network"]))  # a copy may have been created since then
            for copy, state in zip(averaged_copies(pl_module), states, strict=False):
                _load(copy, state)
            for counter, count in zip(_counters(trainer), chain(saved["counters"], repeat(0)), strict=False):
                if counter is not None:
                    counter.fill_(count)
            _restore_parameters(trainer, pl_module, saved.get("trained", []))
            _load_optimizers(trainer, checkpoint)
        reset_compiled()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, (IterativePruning, Rewind)):
                callback.roll_back(trainer, pl_module, checkpoint["callbacks"][callback.state_key])
        reset_best_scores(trainer)
        return checkpoint


def check_setting(trainer: pl.Trainer, pl_module: pl.LightningModule, guard: Callback) -> None:
    """Reject settings that a rollback cannot restore.

    Raises:
        MisconfigurationException: Names the strategy or the callback, and the remedy.
    """
    if is_sharding(trainer):
        raise MisconfigurationException(
            f"AccuracyGuard on_drop='rollback' cannot restore the parameters that {type(trainer.strategy).__name__} "
            "shards; use on_drop='stop' or 'pause', or strategy='ddp'"
        )
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks[: callbacks.index(guard)]:
        closes = hasattr(callback, "on_rollback") and is_overridden("on_train_end", callback, Callback)
        if not isinstance(callback, type(guard)) and (closes or copies_held_by([callback], pl_module)):
            raise MisconfigurationException(
                f"AccuracyGuard on_drop='rollback' must come before {type(callback).__name__} in callbacks, which "
                "would conclude the training with a network that is then rolled back"
            )
    if any(
        c is not guard and isinstance(c, type(guard)) and getattr(c, "on_drop", "") == "rollback" for c in callbacks
    ):
        raise MisconfigurationException(
            "two AccuracyGuards have on_drop='rollback', and each would roll back to a different network; use "
            "on_drop='stop' or 'pause' for one of them"
        )
    kept = {id(copy) for copy in averaged_copies(pl_module)}
    for callback in callbacks:
        for average in (v for v in vars(callback).values() if isinstance(v, AveragedModel)):
            if id(average.module) not in kept:
                raise MisconfigurationException(
                    f"AccuracyGuard on_drop='rollback' cannot restore the average of {type(callback).__name__}, which "
                    "covers a part of the network; average all of it, or keep the average in the LightningModule"
                )


def update_checkpoint_callbacks(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Let checkpoint callbacks refer to the restored network, after which no further validation runs.

    The best remaining file of this network becomes the best checkpoint. If there is none, and for the last checkpoint,
    the network is saved again, with the metrics of the accepted validation.
    """
    trainer.callback_metrics.update({name: torch.tensor(v) for name, v in checkpoint[_KEY]["metrics"].items()})
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, MODEL_CHECKPOINTS):
            continue
        candidates = callback._monitor_candidates(trainer)
        then = checkpoint["callbacks"].get(callback.state_key, {}).get("best_k_models", {})
        scores = callback.best_k_models
        scores.update({path: then[path] for path in scores.keys() & then.keys()})
        best, worst = (max, min) if callback.mode == "max" else (min, max)
        path = best(scores, key=lambda name: float(scores[name]), default="")
        if path and math.isfinite(scores[path]):
            callback.best_model_path, callback.best_model_score = path, scores[path]
            callback.kth_best_model_path = worst(scores, key=lambda name: float(scores[name]))
            callback.kth_value = scores[callback.kth_best_model_path]
            callback._last_checkpoint_saved = path  # target if the last checkpoint is saved as a link
        elif callback.monitor is None or callback.monitor in candidates:
            callback._save_topk_checkpoint(trainer, candidates)
        callback._save_last_checkpoint(trainer, candidates)


def _load(module: nn.Module, state: dict[str, Tensor], strict: bool = True) -> None:
    """Load shapes, attributes that depend on them, values and memory formats."""
    module.load_state_dict(state, strict=strict)
    for name, tensor in named_tensors(module):
        if name in state and tensor.stride() != state[name].stride():
            tensor.data = torch.empty_like(state[name], dtype=tensor.dtype, device=tensor.device).copy_(tensor.data)


def _trained_names(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[list[list[str | None]]]:
    """Names of the parameters of each group of each optimizer; None for one that is not in the network."""
    names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
    groups = ([group["params"] for group in optimizer.param_groups] for optimizer in trainer.strategy.optimizers)
    return [[[names.get(id(parameter)) for parameter in params] for params in own] for own in groups]


def _restore_parameters(
    trainer: pl.Trainer, pl_module: pl.LightningModule, trained: list[list[list[str | None]]]
) -> None:
    """Return the parameters of restored modules to the optimizers, at their former positions."""
    own = dict(pl_module.named_parameters())
    for now, optimizer, then in zip(
        _trained_names(trainer, pl_module), trainer.strategy.optimizers, trained, strict=False
    ):
        for present, group, names in zip(now, optimizer.param_groups, then, strict=False):
            if set(names) <= set(present):
                continue
            others = iter([p for p, name in zip(group["params"], present, strict=True) if name is None])
            group["params"] = [next(others) if name is None else own[name] for name in names]
            if "param_names" in group:
                group["param_names"] = [name or "" for name in names]


def _load_optimizers(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Restore the state that optimizers keep for their parameters, but not learning rates."""
    optimizers = trainer.strategy.optimizers
    then = checkpoint["optimizer_states"]
    states = [{**o.state_dict(), "state": s["state"]} for o, s in zip(optimizers, then, strict=True)]
    trainer.strategy.load_optimizer_state_dict({"optimizer_states": states})


def _counters(trainer: pl.Trainer) -> Iterator[Any]:
    """Counters of averaged networks in callbacks; None before averaging has begun."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for name, value in vars(callback).items():
            if name == "n_averaged" or isinstance(value, AveragedModel):
                yield getattr(value, "n_averaged", value)
