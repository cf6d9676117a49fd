"""Loading of pruned checkpoints in a Trainer, and with ``load_from_checkpoint``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from inspect import signature
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins import CheckpointIO
from torch import nn

from lightning_prune.callbacks.trainer.lightning_packages import Callback
from lightning_prune.checkpoint.as_built import Surroundings
from lightning_prune.checkpoint.loading import BUILDERS, trust_builders
from lightning_prune.checkpoint.manifest import MANIFEST, is_pruned, manifest_in, manifest_now, track_shapes
from lightning_prune.network.averages import copies_held_by

_ARGUMENT = "lightning_prune_argument"  # key in checkpoints: name of the one argument that holds all hyperparameters

trust_builders()


class PrunedCheckpoints(Callback):
    """Loads pruned checkpoints into a dense model, as in ``trainer.test(model, ckpt_path=...)``.

    ``IterativePruning`` does the same; use this callback in a Trainer without it.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Prepare the module before anything is loaded into it."""
        prepare_loading(pl_module)
        let_load_from_checkpoint(trainer, pl_module)


def prepare_loading(pl_module: pl.LightningModule) -> None:
    """Let ``pl_module``, and averaged copies of it that callbacks keep, adopt pruned shapes from checkpoints."""
    for copy in averaged_copies(pl_module):
        track_shapes(copy)
    track_shapes(pl_module, _InTrainer())


def averaged_copies(pl_module: pl.LightningModule) -> list[nn.Module]:
    """Copies of the whole ``pl_module`` that callbacks of its Trainer keep, such as EMA and SWA."""
    trainer = pl_module._trainer
    return [] if trainer is None else copies_held_by(trainer.callbacks, pl_module)  # type: ignore[attr-defined]


class _InTrainer(Surroundings):
    def manifest(self, module: nn.Module) -> Mapping[str, Any]:
        trainer = getattr(module, "_trainer", None)
        return {} if trainer is None else manifest_in(trainer._checkpoint_connector._loaded_checkpoint)

    def copies(self, module: Any) -> Iterable[nn.Module]:
        return averaged_copies(module) if hasattr(module, "_trainer") else ()


def let_load_from_checkpoint(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Let ``load_from_checkpoint`` build the module of a pruned checkpoint with one of the builders below.

    Lightning supports this by the path of a function among the hyperparameters. It is added when the file is written,
    because callbacks do not receive checkpoints that hold weights only.
    """
    own = trainer.strategy.checkpoint_io
    own = own.own if isinstance(own, _BuilderAddingIO) else own
    with suppress(TypeError):  # XLA accepts only its own class
        trainer.strategy.checkpoint_io = _BuilderAddingIO(own, pl_module)


class _BuilderAddingIO(CheckpointIO):
    """Wraps the Trainer's checkpoint plugin, and adds a builder to pruned checkpoints."""

    def __init__(self, own: CheckpointIO, module: pl.LightningModule) -> None:
        self.own, self.module = own, module

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if is_pruned(self.module):
            _add_builder(checkpoint, self.module)
            checkpoint[MANIFEST] = manifest_now(self.module)
        self.own.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.own.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        self.own.remove_checkpoint(path)

    def teardown(self) -> None:
        self.own.teardown()

    def __getattr__(self, name: str) -> Any:
        if name == "own":  # not set yet while a copy is made
            raise AttributeError(name)
        return getattr(self.own, name)


def synchronous_io(trainer: pl.Trainer) -> CheckpointIO:
    """The plugin that writes the files of this Trainer synchronously, without the plugins that wrap it."""
    plugin: Any = trainer.strategy.checkpoint_io
    while True:
        wrapped = plugin.own if isinstance(plugin, _BuilderAddingIO) else vars(plugin).get("_checkpoint_io")
        if not isinstance(wrapped, CheckpointIO):
            return plugin  # type: ignore[no-any-return]
        plugin = wrapped


def _add_builder(checkpoint: dict[str, Any], module: pl.LightningModule) -> None:
    arguments = checkpoint.get(module.CHECKPOINT_HYPER_PARAMS_KEY, {})
    if type(arguments) is not dict or arguments.get("_instantiator") not in BUILDERS:
        return
    name = checkpoint.get(module.CHECKPOINT_HYPER_PARAMS_NAME)
    if name not in (None, "kwargs") and name in signature(type(module).__init__).parameters:
        arguments = {name: arguments}  # the builder is a second entry
        checkpoint[_ARGUMENT] = checkpoint.pop(module.CHECKPOINT_HYPER_PARAMS_NAME)
    builder = BUILDERS[arguments.get("_instantiator")]
    checkpoint[module.CHECKPOINT_HYPER_PARAMS_KEY] = {**arguments, "_instantiator": builder}


def build_as_load_pruned(cls: type[pl.LightningModule], arguments: dict[str, Any]) -> pl.LightningModule:
    """Build a module as Lightning does, ready to load pruned weights."""
    return _ready_to_load(cls(**arguments))


def build_from_cli_as_load_pruned(cls: type[pl.LightningModule], arguments: dict[str, Any]) -> pl.LightningModule:
    """Build a module as LightningCLI does, ready to load pruned weights."""
    from lightning.pytorch.cli import instantiate_module

    return _ready_to_load(instantiate_module(cls, arguments))


def _ready_to_load(module: pl.LightningModule) -> pl.LightningModule:
    own = module.on_load_checkpoint

    def prepare(checkpoint: dict[str, Any]) -> None:
        del module.on_load_checkpoint  # restores the method of the class: this function is called once
        _check_overrides(module, checkpoint)
        track_shapes(module, _InFile(manifest_in(checkpoint)))
        own(checkpoint)

    module.on_load_checkpoint = prepare  # type: ignore[method-assign]
    return module


def _check_overrides(module: pl.LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Reject keywords that would change single entries of an argument that holds all hyperparameters."""
    name = checkpoint.get(_ARGUMENT)
    ignored = sorted(checkpoint[module.CHECKPOINT_HYPER_PARAMS_KEY].keys() - {name, "_instantiator"}) if name else []
    if ignored:
        raise ValueError(
            f"{ignored[0]!r} is an entry of {name!r}, which a keyword cannot change in a pruned checkpoint; pass the "
            f"whole argument: {name}={{...}}"
        )


class _InFile(Surroundings):
    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self._manifest = manifest

    def manifest(self, module: nn.Module) -> Mapping[str, Any]:
        found, self._manifest = self._manifest, {}
        return found
