"""Trainings whose validations are scripted or depend on the width, and what has to come back after a rollback."""

import copy
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from helpers.scripted import Scripted, loader
from helpers.training import Lit, trainer_for
from lightning_prune import AccuracyGuard, IterativePruning, Weights
from lightning_prune.budgets import Count, Ratio, Sparsity


class Judged(Lit):
    """Validates as the script says, one value a validation; the learning rate is constant unless told otherwise.

    Begins with the same weights every time.
    """

    def __init__(self, script: list[float], optimizer: str = "sgd", decay: float = 1.0) -> None:
        torch.manual_seed(0)
        super().__init__(optimizer=optimizer)
        self.script, self.decay, self.validations = script, decay, 0

    def on_validation_epoch_end(self) -> None:
        self.log("score", self.script[min(self.validations, len(self.script) - 1)])
        self.validations += 1

    def configure_optimizers(self) -> Any:
        (optimizer,), _ = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, self.decay)]


class Sized(Scripted):
    """Twenty hidden units; validates at 1 as long as at least ``least`` of them are left, or as ``script`` says."""

    def __init__(self, least: int, script: list[float] | None = None) -> None:
        super().__init__(script)
        self.net = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
        self.least = least
        self.validated: list[int] = []

    def on_validation_epoch_end(self) -> None:
        scripted = self.script[len(self.validated)] if len(self.validated) < len(self.script) else 1.0
        self.log("score", min(scripted, float(self.width >= self.least)))
        self.validated.append(self.width)

    @property
    def tried(self) -> list[int]:
        """Widths in the order in which they were validated, each once in a row."""
        return [width for width, _ in groupby(self.validated)]


def guard(retry: int = 0, **settings: Any) -> AccuracyGuard:
    return AccuracyGuard("score", 0.1, on_drop="rollback", retry=retry, **settings)


def run(folder: Path, module: LightningModule, *callbacks: Callback, epochs: int, **options: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = trainer_for(folder, *callbacks, max_epochs=epochs, **options)
    trainer.fit(module, *([loader(), loader()] if isinstance(module, Scripted) else []))
    return trainer


def everything(trainer: Trainer, *pruners: IterativePruning) -> dict[str, Any]:
    """What has to come back."""
    module: Any = trainer.lightning_module
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "optimizers": copy.deepcopy([optimizer.state_dict()["state"] for optimizer in trainer.optimizers]),
        "held": [id(p) for o in trainer.optimizers for g in o.param_groups for p in g["params"]],
        "numbers": [(m.out_channels, m.in_channels) for m in module.modules() if isinstance(m, nn.Conv2d)],
        "pruners": copy.deepcopy([pruning.pruner.state_dict() for pruning in pruners]),
    }


class Before(Callback):
    """Everything just before each event, as it is without the guard."""

    def __init__(self, *pruners: IterativePruning) -> None:
        self.pruners, self.seen = pruners, []

    def on_before_prune(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
        self.seen.append(everything(trainer, *self.pruners))


class PowerFailureError(Exception): ...


class Interrupt(Callback):
    """As when the power fails, at a hook of an epoch; comes first in the list, so that nothing else happens there."""

    def __init__(self, hook: str, epoch: int | None = None) -> None:
        setattr(self, hook, self._fail)
        self.epoch = epoch

    def _fail(self, trainer: Trainer, *_: Any) -> None:
        if self.epoch in (None, trainer.current_epoch):
            raise PowerFailureError


CHANNELS = lambda schedule: [IterativePruning(schedule, Ratio(0.5))]  # noqa: E731
METHODS: dict[str, Callable[[Any], list[IterativePruning]]] = {
    "magnitude": CHANNELS,
    "taylor": lambda schedule: [IterativePruning(schedule, Ratio(0.5), "taylor")],
    "masks": lambda schedule: [IterativePruning(schedule, Sparsity(0.8), granularity=Weights())],
    "both": lambda schedule: [
        IterativePruning(schedule, Ratio(0.5), "taylor"),
        IterativePruning(schedule, Sparsity(0.8), granularity=Weights()),
    ],
    "counts": lambda schedule: [IterativePruning(schedule, Count(4), "taylor")],
}
