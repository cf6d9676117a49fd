"""The accepted network on disk: a checkpoint of the Trainer that a running training can go back to."""

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
from lightning_prune.callbacks.trainer.listeners import forget_best
from lightning_prune.callbacks.trainer.strategies import forget_compiled, is_sharding, unwrapped
from lightning_prune.network.averages import copies_held_by
from lightning_prune.network.tensors import named_tensors

_KEY = "accepted"  # what the file holds besides the parts of any other checkpoint


@dataclass(frozen=True)
class RollbackCheckpoint:
    """A file.

    Attributes:
        path: Where it is.
        epoch: Epoch of the network in it.
        own: Whether this process has written it, so that it may hold whatever the user's module puts into checkpoints.
    """

    path: str
    epoch: int
    own: bool = False

    @classmethod
    def write(cls, trainer: pl.Trainer, pl_module: pl.LightningModule, path: str, epoch: int) -> RollbackCheckpoint:
        """A checkpoint with what a running training needs besides; all ranks take part."""
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        checkpoint[_KEY] = {
            "network": pl_module.state_dict(),  # averaging callbacks may have put another one in its place
            "trained": _trained(trainer, pl_module),
            "copies": [copy.state_dict() for copy in averaged_copies(pl_module)],
            "counters": [0 if counter is None else int(counter) for counter in _counters(trainer)],
            "metrics": {name: float(v) for name, v in trainer.callback_metrics.items() if v.numel() == 1},
        }
        if trainer.is_global_zero:
            synchronous_io(trainer).save_checkpoint(checkpoint, path)
        trainer.strategy.barrier("RollbackCheckpoint.write")
        return cls(path, epoch, own=True)

    def restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Make the network, its averaged copies, its optimizers and the pruners what they were; returns the file.

        The training goes on from where it is: learning rates, their schedulers, loops and data are not touched.
        """
        load = trainer.strategy.load_checkpoint
        trusted = {"weights_only": False} if self.own and "weights_only" in signature(load).parameters else {}
        checkpoint: dict[str, Any] = load(self.path, **trusted)
        trainer.strategy.barrier("RollbackCheckpoint.restore")  # from here on the file may be removed
        saved = checkpoint[_KEY]
        with unwrapped(trainer):
            for optimizer in trainer.strategy.optimizers:
                optimizer.zero_grad(set_to_none=True)
            _load(pl_module, saved["network"], pl_module.strict_loading)
            states = chain(saved["copies"], repeat(saved["network"]))  # a copy may have been made since then
            for copy, state in zip(averaged_copies(pl_module), states, strict=False):
                _load(copy, state)
            for counter, count in zip(_counters(trainer), chain(saved["counters"], repeat(0)), strict=False):
                if counter is not None:
                    counter.fill_(count)
            _give_back_parameters(trainer, pl_module, saved.get("trained", []))
            _load_optimizers(trainer, checkpoint)
        forget_compiled()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, (IterativePruning, Rewind)):
                callback.roll_back(trainer, pl_module, checkpoint["callbacks"][callback.state_key])
        forget_best(trainer)
        return checkpoint


def check_setting(trainer: pl.Trainer, pl_module: pl.LightningModule, guard: Callback) -> None:
    """Refuse what cannot be brought back.

    Raises:
        MisconfigurationException: Names the strategy or the callback, and the cure.
    """
    if is_sharding(trainer):
        raise MisconfigurationException(
            f"AccuracyGuard on_drop='rollback' cannot bring back the parameters that {type(trainer.strategy).__name__} "
            "shards; use on_drop='stop' or 'pause', or strategy='ddp'"
        )
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks[: callbacks.index(guard)]:
        closes = hasattr(callback, "on_rollback") and is_overridden("on_train_end", callback, Callback)
        if not isinstance(callback, type(guard)) and (closes or copies_held_by([callback], pl_module)):
            raise MisconfigurationException(
                f"AccuracyGuard on_drop='rollback' must come before {type(callback).__name__} in callbacks, which "
                "would conclude the training with a network that is then taken back"
            )
    if any(
        c is not guard and isinstance(c, type(guard)) and getattr(c, "on_drop", "") == "rollback" for c in callbacks
    ):
        raise MisconfigurationException(
            "two AccuracyGuards have on_drop='rollback', and each would go back to another network; let the other one "
            "use on_drop='stop' or 'pause'"
        )
    kept = {id(copy) for copy in averaged_copies(pl_module)}
    for callback in callbacks:
        for average in (v for v in vars(callback).values() if isinstance(v, AveragedModel)):
            if id(average.module) not in kept:
                raise MisconfigurationException(
                    f"AccuracyGuard on_drop='rollback' cannot bring back what {type(callback).__name__} averages, a "
                    "part of the network; average all of it, or keep the average inside the LightningModule"
                )


def file_accepted(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Let the checkpoint callbacks hold the network that was brought back, which no validation will follow.

    The best file is the best one of this network that is left; where there is none, and for the last file, the network
    is saved once more, under the metrics of the validation that was accepted.
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
            callback._last_checkpoint_saved = path  # what the last file is a link to, if it is to be one
        elif callback.monitor is None or callback.monitor in candidates:
            callback._save_topk_checkpoint(trainer, candidates)
        callback._save_last_checkpoint(trainer, candidates)


def _load(module: nn.Module, state: dict[str, Tensor], strict: bool = True) -> None:
    """Shapes, numbers that follow them, values and memory format."""
    module.load_state_dict(state, strict=strict)
    for name, tensor in named_tensors(module):
        if name in state and tensor.stride() != state[name].stride():
            tensor.data = torch.empty_like(state[name], dtype=tensor.dtype, device=tensor.device).copy_(tensor.data)


def _trained(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[list[list[str | None]]]:
    """For each group of each optimizer the names of its parameters; None for one that is not in the network."""
    names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
    groups = ([group["params"] for group in optimizer.param_groups] for optimizer in trainer.strategy.optimizers)
    return [[[names.get(id(parameter)) for parameter in params] for params in own] for own in groups]


def _give_back_parameters(
    trainer: pl.Trainer, pl_module: pl.LightningModule, trained: list[list[list[str | None]]]
) -> None:
    """Let the optimizers have the parameters again that have gone with their modules and come back, in their places."""
    own = dict(pl_module.named_parameters())
    for now, optimizer, then in zip(_trained(trainer, pl_module), trainer.strategy.optimizers, trained, strict=False):
        for present, group, names in zip(now, optimizer.param_groups, then, strict=False):
            if set(names) <= set(present):
                continue
            others = iter([p for p, name in zip(group["params"], present, strict=True) if name is None])
            group["params"] = [next(others) if name is None else own[name] for name in names]
            if "param_names" in group:
                group["param_names"] = [name or "" for name in names]


def _load_optimizers(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """What optimizers remember of their parameters, and not their learning rates."""
    optimizers = trainer.strategy.optimizers
    then = checkpoint["optimizer_states"]
    states = [{**o.state_dict(), "state": s["state"]} for o, s in zip(optimizers, then, strict=True)]
    trainer.strategy.load_optimizer_state_dict({"optimizer_states": states})


def _counters(trainer: pl.Trainer) -> Iterator[Any]:
    """How many networks are in the averages that callbacks keep; None where none has begun."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for name, value in vars(callback).items():
            if name == "n_averaged" or isinstance(value, AveragedModel):
                yield getattr(value, "n_averaged", value)
