"""Trainings that Lightning itself resumes bit for bit: a loader that knows its place, random numbers restored."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from helpers.training import BATCH, Lit, images, trainer_for
from lightning_prune import AccuracyGuard, IterativePruning, Weights
from lightning_prune.budgets import Count, MACs, Ratio, Sparsity
from lightning_prune.criteria import Random, Taylor
from lightning_prune.schedules import Cubic, Rounds

STEPS = 4  # training batches an epoch; the last one is smaller
EPOCHS = 4
EXAMPLES = STEPS * BATCH - 3
SCORES = [0.9, 0.9, 0.5, 0.5, 0.9, 0.9, 0.5, 0.9]  # after every half of an epoch

METHODS: dict[str, Callable[[], list[Callback]]] = {
    "nothing": lambda: [],
    "taylor": lambda: [IterativePruning(Rounds(1, 1, 2), MACs(keep=0.4), criterion="taylor")],
    "taylor_in_steps": lambda: [IterativePruning(Rounds(3, 5, 3, "step"), Ratio(0.5), Taylor(every_n_steps=2))],
    "masks": lambda: [IterativePruning(Cubic(0, 3), Sparsity(0.8), granularity=Weights())],
    "both": lambda: [
        IterativePruning(Rounds(1, 2, 2), Ratio(0.5), criterion="taylor"),
        IterativePruning(Rounds(1, 1, 3), Sparsity(0.6), granularity=Weights()),
    ],
    "random": lambda: [
        IterativePruning(Rounds(1, 1, 3), Count(2), Random(seed=1)),
        IterativePruning(Cubic(0.0, 0.8, every=0.1, unit="share"), Sparsity(0.8), Random(), Weights()),
    ],
    "guard": lambda: [
        IterativePruning(Rounds(1, 1, 3), Ratio(0.5), criterion="taylor"),
        AccuracyGuard("score", 0.05, on_drop="pause"),
    ],
}


class Loader:
    """Batches in another order every epoch; goes on in the middle of one."""

    def __init__(self) -> None:
        self.data, self.sampler = images(EXAMPLES).tensors, self  # Lightning calls ``sampler.set_epoch``
        self.epoch = self.place = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[list[Tensor]]:
        order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(self.epoch)).split(BATCH)
        self.place %= STEPS
        while self.place < STEPS:
            self.place += 1
            yield [tensor[order[self.place - 1]] for tensor in self.data]

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class Randomness(Callback):
    """Goes on with the random numbers that would have come."""

    def __init__(self) -> None:
        self.saved: Tensor | None = None

    def state_dict(self) -> dict[str, Tensor]:
        return {"torch": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.saved = state["torch"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.saved is not None:
            torch.set_rng_state(self.saved)


class Noisy(Lit):
    """With dropout, and a validation metric that depends on the step alone."""

    def __init__(self) -> None:
        super().__init__(optimizer="adamw")
        self.net.insert(6, nn.Dropout(0.2))

    def on_validation_epoch_end(self) -> None:
        self.log("score", SCORES[self.global_step * 2 // STEPS - 1])

    def train_dataloader(self) -> Any:
        return Loader()

    def val_dataloader(self) -> Any:
        return DataLoader(images(24, seed=1), BATCH, generator=torch.Generator())  # else it draws from the global one

    test_dataloader = val_dataloader


def train(folder: Path, callbacks: list[Callback], ckpt_path: Any = None, **options: Any) -> tuple[Noisy, Trainer]:
    """Train to the end; resumed runs begin from other weights and other random numbers."""
    torch.manual_seed(0 if ckpt_path is None else 1)
    lit = Noisy()
    trainer = trainer_for(folder, *callbacks, Randomness(), **{"max_epochs": EPOCHS, **options})
    trainer.fit(lit, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    return lit, trainer


def everything(lit: Noisy, trainer: Trainer, callbacks: list[Callback]) -> dict[str, Any]:
    """All that two runs can differ in."""
    return {
        "weights": dict(lit.state_dict()),
        "optimizer": trainer.optimizers[0].state_dict(),
        "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "position": (trainer.current_epoch, trainer.global_step),
        "callbacks": [callback.state_dict() for callback in callbacks],
    }


def without_metrics(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "callbacks": [{k: v for k, v in c.items() if k != "history"} for c in state["callbacks"]]}


class Everywhere(Callback):
    """Saves a checkpoint at each of these hooks, named ``number hook epoch batch``."""

    def __init__(self, folder: Path, hooks: list[str]) -> None:
        self.folder, self.number = folder, 0
        for hook in hooks:
            setattr(self, hook, self._saving_at(hook))

    def _saving_at(self, hook: str) -> Callable[..., None]:
        def save(trainer: Trainer, *_: Any) -> None:
            place = f"{hook} {trainer.current_epoch} {trainer.fit_loop.batch_idx}"
            trainer.save_checkpoint(self.folder / f"{self.number:03d} {place}.ckpt")
            self.number += 1

        return save

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.ckpt"))


class Measured(Callback):
    """What every validation has measured, as far as this training and those before it know."""

    def __init__(self) -> None:
        self.values: list[list[float]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.values.append([float(trainer.callback_metrics[name]) for name in ("score", "val_loss")])

    def state_dict(self) -> dict[str, Any]:
        return {"values": list(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = list(state_dict["values"])


def place(file: Path) -> tuple[str, int, int]:
    _, hook, epoch, batch = file.stem.split()
    return hook, int(epoch), int(batch)
