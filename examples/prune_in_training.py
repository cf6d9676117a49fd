"""Prune your own LightningModule while it trains: python examples/prune_in_training.py."""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_prune import AccuracyGuard, Channels, IterativePruning, load_pruned
from lightning_prune.budgets import Params
from lightning_prune.criteria import Taylor
from lightning_prune.schedules import Rounds
from lightning_prune.tasks import DigitsData


class LitConvNet(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Linear(64 * 2 * 2, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return cross_entropy(self(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("val_acc", (self(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main() -> None:
    pl.seed_everything(0)
    checkpoint = pl.callbacks.ModelCheckpoint(monitor="val_acc", mode="max")
    pruning = IterativePruning(
        granularity=Channels(round_to=4),
        criterion=Taylor(),
        schedule=Rounds(start=3, every=2, count=4),
        budget=Params(keep=0.25),
    )
    trainer = pl.Trainer(
        max_epochs=12,
        accelerator="cpu",
        callbacks=[pruning, AccuracyGuard("val_acc", max_drop=0.03), checkpoint],
    )
    trainer.fit(LitConvNet(), DigitsData())

    small = load_pruned(LitConvNet, checkpoint.best_model_path)
    print(small.features[0], small.features[4], small.classifier, sep="\n")


if __name__ == "__main__":
    main()
