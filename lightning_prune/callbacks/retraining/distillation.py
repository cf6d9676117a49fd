"""``Distillation``: knowledge distillation from the dense network, or another teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import abspath, join
from typing import Any
from uuid import uuid4

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from torch import nn

from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning
from lightning_prune.callbacks.pruning.pruning_callbacks import count_events, pruning_callbacks
from lightning_prune.callbacks.retraining.feature_comparison import Comparison
from lightning_prune.callbacks.trainer.lightning_packages import Callback, MisconfigurationException
from lightning_prune.callbacks.trainer.strategies import check_whole
from lightning_prune.checkpoint.loading import load_other_size
from lightning_prune.distilling import DistillationLoss, SoftTargets
from lightning_prune.network.copies import copy_of
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report


@dataclass(frozen=True)
class _Teacher:
    """Wraps the network, so that it is not taken for an averaged copy, which would be pruned with the student."""

    network: nn.Module


class Distillation(Callback):
    """Trains the network with distillation losses from a teacher, without changes to ``training_step``.

    Hinton et al. 2015, 'Distilling the knowledge in a neural network'. The teacher runs on the inputs of the student;
    the gradients of the losses are added at the student's outputs during the backward pass of the task's loss. A single
    backward pass is enough, also with DDP, AMP and gradient accumulation. The logged loss of the task does not change;
    the sum of the weighted distillation losses is logged as ``distillation``.

    The teacher is in eval mode on the device of the network, receives no gradients, and is part of no checkpoint.

    Args:
        teacher: Teacher network. ``"dense"``: the network before the first pruning event, used from then on; it is
            saved next to the logs (``teacher-*.ckpt``) for resumed trainings. A path: a checkpoint of the same
            LightningModule. A network: another LightningModule with the compared modules, or a replacement for
            ``module``.
        losses: Distillation losses. Modules are named as in the LightningModule. Default: ``[SoftTargets()]``.
        module: Qualified name of the network that ``training_step`` calls. Default: the LightningModule itself, called
            as ``self(x)``.

    Raises:
        MisconfigurationException: If an argument is of the wrong type, a module does not exist or is not used by
            ``training_step``, the file of the teacher does not exist, or the strategy shards parameters.
    """

    def __init__(
        self,
        teacher: nn.Module | str = "dense",
        losses: Sequence[DistillationLoss] | None = None,
        module: str = "",
    ) -> None:
        self.losses = [SoftTargets()] if losses is None else list(losses)
        if not isinstance(teacher, (str, nn.Module)):
            raise MisconfigurationException(f"Distillation teacher={teacher!r} is not 'dense', a path or a network")
        if not self.losses or not all(isinstance(loss, DistillationLoss) for loss in self.losses):
            raise MisconfigurationException(
                f"Distillation losses={losses!r} must be a list of losses such as SoftTargets(temperature=4)"
            )
        self.module = module
        self._given = teacher if isinstance(teacher, str) else _Teacher(teacher)
        self._path: str | None = None  # path of the dense network
        self._teacher: _Teacher | None = None
        self._comparison: Comparison | None = None  # in the current batch

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Reject strategies that shard parameters."""
        check_whole(trainer, self)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the teacher, unless it is the dense network before the first event."""
        student = _find(self.module, pl_module, "the network")
        for loss in self._relative:
            _find(loss.module, student, "the network")
        if self._given == "dense" and not pruning_callbacks(trainer):
            raise MisconfigurationException(
                "Distillation teacher='dense' is the network before the first pruning event, but nothing is pruned; "
                "add IterativePruning(...), or give a checkpoint or a network"
            )
        if self._given == "dense" and count_events(trainer) == 0:
            self._path = None  # belongs to an earlier training
            return
        if isinstance(self._given, _Teacher):
            self._set_teacher(pl_module, copy_of(self._given.network))
            return
        path = self._path if self._given == "dense" else self._given
        if path is None:
            raise MisconfigurationException(
                "Distillation teacher='dense' is not available: the network was pruned in a training without "
                "Distillation; give a checkpoint of the dense network, Distillation(teacher=PATH)"
            )
        if not get_filesystem(path).exists(path):
            raise MisconfigurationException(
                f"Distillation: there is no teacher at {path!r}; give its checkpoint, Distillation(teacher=PATH)"
            )
        network = copy_of(pl_module)  # its size may differ from that of the teacher
        load_other_size(network, path)
        self._set_teacher(pl_module, network)

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """Copy the teacher ``"dense"`` when the first event is due, again each time that it is held back."""
        if self._given != "dense" or count_events(trainer) > 0:
            return
        self._set_teacher(pl_module, copy_of(pl_module))
        if self._path is None:
            folder = trainer.log_dir or trainer.default_root_dir
            path = join(folder if "://" in folder else abspath(folder), f"teacher-{uuid4().hex[:12]}.ckpt")
            self._path = trainer.strategy.broadcast(path)
        trainer.strategy.save_checkpoint({"state_dict": pl_module.state_dict()}, self._path)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compare outputs in this batch."""
        self._begin(trainer, pl_module)

    def on_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan, report: Report) -> None:
        """Compare outputs with those of a new teacher, if the first batch of a resumed training has begun already."""
        self._begin(trainer, pl_module)

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._release()
        if self._teacher is not None:
            windows = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            scale = (1.0 if scaler is None else float(scaler.get_scale())) / windows
            student, teacher = pl_module.get_submodule(self.module), self._teacher.network.to(pl_module.device)
            self._comparison = Comparison(student, teacher, self._relative, scale)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the losses, and remove the hooks."""
        if self._comparison is None:
            return
        values, unused = self._comparison.values, self._comparison.unused
        self._release()
        if unused is not None:
            where = ".".join(filter(None, (self.module, unused))) or "forward"
            raise MisconfigurationException(
                f"Distillation compares the output of {where!r}, which training_step has not called, or which is "
                "compiled. Name the network that training_step calls, such as Distillation(module='net')."
            )
        pl_module.log("distillation", torch.stack(values).sum(), on_step=False, on_epoch=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the hooks, and release the teacher."""
        self._release()
        if stage == "fit":
            self._teacher = None

    def state_dict(self) -> dict[str, Any]:
        """Path of the teacher."""
        return {"path": self._path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._path = state_dict["path"]

    @property
    def _relative(self) -> list[DistillationLoss]:
        """The losses, with module names relative to the student."""
        prefix = f"{self.module}." if self.module else ""
        names = ["" if loss.module == self.module else loss.module.removeprefix(prefix) for loss in self.losses]
        return [replace(loss, module=name) for loss, name in zip(self.losses, names, strict=True)]  # type: ignore[type-var]

    def _set_teacher(self, pl_module: pl.LightningModule, network: nn.Module) -> None:
        if any(cls.__name__ == "LightningModule" for cls in type(network).__mro__):
            network = _find(self.module, network, "the teacher")
        for loss in self._relative:
            _find(loss.module, network, "the teacher")
        self._teacher = _Teacher(network.eval().requires_grad_(False).to(pl_module.device))

    def _release(self) -> None:
        if self._comparison is not None:
            self._comparison.release()
            self._comparison = None


def _find(name: str, network: nn.Module, whose: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        names = [path for path, _ in network.named_modules() if path]
        raise MisconfigurationException(
            f"Distillation compares the output of {name!r}, which {whose} does not have; it has {', '.join(names[:6])}"
        ) from error
