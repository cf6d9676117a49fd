"""Loading pruned checkpoints in a Trainer, and with ``load_from_checkpoint``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import signature
from typing import Any

import lightning.pytorch as pl
from torch import nn

from lightning_prune.averaged import copies_held_by
from lightning_prune.callbacks.packages import Callback
from lightning_prune.checkpoint import BUILDERS, trust_builders
from lightning_prune.manifest import Surroundings, is_pruned, manifest_in, track_shapes

trust_builders()


class PrunedCheckpoints(Callback):
    """Lets ``trainer.test(model, ckpt_path=...)`` and the like load pruned checkpoints into a dense model.

    ``IterativePruning`` does the same; this one is for Trainers without it.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Prepare the module before anything is loaded into it."""
        prepare_loading(pl_module)


def prepare_loading(pl_module: pl.LightningModule) -> None:
    """Let ``pl_module`` take over pruned shapes from checkpoints, and averaged copies of it that callbacks keep."""
    for copy in averaged_copies(pl_module):
        track_shapes(copy)
    track_shapes(pl_module, _InTrainer())


def averaged_copies(pl_module: pl.LightningModule) -> list[nn.Module]:
    """Copies of all of ``pl_module`` that the Trainer's callbacks keep, as EMA and SWA do."""
    trainer = pl_module._trainer
    return [] if trainer is None else copies_held_by(trainer.callbacks, pl_module)  # type: ignore[attr-defined]


class _InTrainer(Surroundings):
    def manifest(self, module: nn.Module) -> Mapping[str, Any]:
        trainer = getattr(module, "_trainer", None)
        return {} if trainer is None else manifest_in(trainer._checkpoint_connector._loaded_checkpoint)

    def copies(self, module: Any) -> Iterable[nn.Module]:
        return averaged_copies(module) if hasattr(module, "_trainer") else ()


def let_load_from_checkpoint(pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Have ``load_from_checkpoint`` build the module of a pruned ``checkpoint`` with one of the builders below.

    Lightning's own way for that is the path of a function among the hyperparameters.
    """
    if not is_pruned(pl_module):
        return
    arguments = checkpoint.setdefault(pl_module.CHECKPOINT_HYPER_PARAMS_KEY, {})
    name = checkpoint.get(pl_module.CHECKPOINT_HYPER_PARAMS_NAME)
    in_one = name not in (None, "kwargs") and name in signature(type(pl_module).__init__).parameters
    if type(arguments) is dict and not in_one and arguments.get("_instantiator") in BUILDERS:
        arguments["_instantiator"] = BUILDERS[arguments.get("_instantiator")]


def build_as_load_pruned(cls: type[pl.LightningModule], arguments: dict[str, Any]) -> pl.LightningModule:
    """A module that can load pruned weights; nothing else differs from what Lightning does."""
    return _ready_to_load(cls(**arguments))


def build_from_cli_as_load_pruned(cls: type[pl.LightningModule], arguments: dict[str, Any]) -> pl.LightningModule:
    """The same for a checkpoint that LightningCLI wrote."""
    from lightning.pytorch.cli import instantiate_module

    return _ready_to_load(instantiate_module(cls, arguments))


def _ready_to_load(module: pl.LightningModule) -> pl.LightningModule:
    own = module.on_load_checkpoint

    def notice(checkpoint: dict[str, Any]) -> None:
        del module.on_load_checkpoint  # this one, which is called once
        track_shapes(module, _InFile(manifest_in(checkpoint)))
        own(checkpoint)

    module.on_load_checkpoint = notice  # type: ignore[method-assign]
    return module


class _InFile(Surroundings):
    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self._manifest = manifest

    def manifest(self, module: nn.Module) -> Mapping[str, Any]:
        found, self._manifest = self._manifest, {}
        return found
