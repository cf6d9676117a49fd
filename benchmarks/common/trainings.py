"""The trainings whose cost `overhead.py` measures."""

from __future__ import annotations

import argparse
import threading
import time
from typing import Any

import torch
import torchvision
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelPruning
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.quiet import quiet
from common.resources import synchronise
from lightning_prune import IterativePruning, Weights
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.criteria import Taylor
from lightning_prune.schedules import Constant

FIRST_EPOCH = 2  # steps before weights are masked
WARM_UP = 4  # steps in all before those that are measured
OBSERVED_EVERY = 10
MASKED = ("Weights()", "ModelPruning")
VARIANTS = ("no pruning", *MASKED, "Taylor, every step", "Taylor, every 10th")


class Classifier(LightningModule):
    """A torchvision network on random images, for two epochs of some steps."""

    def __init__(self, network: str, options: argparse.Namespace, steps: tuple[int, int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torchvision.models.get_model(network, weights=None)
        images = torch.randn(options.batch, 3, options.pixels, options.pixels)
        self.batch = (images, torch.arange(options.batch))
        self.steps = steps
        self.example_input_array = images[:1]

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)

    def train_dataloader(self) -> Any:
        return DataLoader([self.batch] * self.steps[self.trainer.current_epoch], batch_size=None)


def pruning_of(variant: str, lit: Classifier) -> list[Callback]:
    if variant == "Weights()":
        return [IterativePruning(Constant(1), Sparsity(0.5), granularity=Weights())]
    if variant == "ModelPruning":
        layers = [(m, "weight") for m in lit.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        first = {"apply_pruning": lambda epoch: epoch == 0, "use_lottery_ticket_hypothesis": False}
        return [ModelPruning("l1_unstructured", layers, amount=0.5, **first)]
    if variant.startswith("Taylor"):
        return [IterativePruning(Constant(1000), Ratio(0.5), Taylor(OBSERVED_EVERY if "10th" in variant else 1))]
    return []


def trainer_for(device: str, callbacks: list[Callback], **options: Any) -> Trainer:
    quiet()
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return Trainer(
        accelerator=device,
        callbacks=callbacks,
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,
        **{"devices": 1, **dict.fromkeys(off, False), **options},
    )


class Turns(Callback):
    """Trains in a thread, a step each time it is told to."""

    def __init__(self, variant: str, options: argparse.Namespace) -> None:
        self.seconds: list[float] = []  # of what came before the first step, then of all steps but the last
        self._error: BaseException | None = None
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._began = 0.0
        threading.Thread(target=self._train, args=(variant, options), daemon=True).start()
        self._wait()

    def step(self) -> None:
        self._go.release()
        self._wait()

    def _wait(self) -> None:
        self._stopped.acquire()
        if self._error is not None:
            raise self._error

    def _train(self, variant: str, options: argparse.Namespace) -> None:
        try:
            torch.set_num_threads(options.threads)  # it counts for one thread
            lit = Classifier("resnet18", options, (FIRST_EPOCH, all_steps(options) - FIRST_EPOCH))
            trainer_for(options.device, [self, *pruning_of(variant, lit)]).fit(lit)
        except BaseException as error:
            self._error = error
        self._stopped.release()

    def on_train_batch_start(self, *_: Any) -> None:
        synchronise()
        self.seconds.append(time.perf_counter() - self._began)
        self._stopped.release()
        self._go.acquire()
        self._began = time.perf_counter()


def all_steps(options: argparse.Namespace) -> int:
    return WARM_UP + options.steps + 1  # in the last one, the training ends


class Watch(Callback):
    """Notes when callbacks are called: the first one of a Trainer, or the last."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.batches: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        synchronise()
        self.epochs.append(time.perf_counter())

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        synchronise()
        if trainer.current_epoch == 0:
            self.batches.append(time.perf_counter())
