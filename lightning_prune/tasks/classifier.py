"""Image classification: the LightningModule that the recipes train."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedulers
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune.tasks.build import build_network

AUXILIARY_LOSS_WEIGHT = 0.3  # Szegedy et al. (2015), section 5

_STEPPED_PER_BATCH = (schedulers.OneCycleLR, schedulers.CyclicLR)


class ImageClassifier(LightningModule):
    """Train any classification network with cross entropy.

    Logs `train_loss`, `val_loss`, `val_acc`, `test_loss` and `test_acc`, each once an epoch; accuracies are
    fractions in [0, 1] over all images of the split.

    Checkpoints hold the states of the optimizer and the scheduler, but not how to make them, so that every
    checkpoint loads with `weights_only=True`. What `ImageClassifier.load_from_checkpoint(path)` returns has
    the default optimizer and no scheduler; to train it further set them again.

    Args:
        model: `small_resnet`, `small_vit`, `cifar_resnet`, or the name of any classification network of torchvision,
            such as `resnet18`, `mobilenet_v3_small` or `vit_b_16`.
        num_classes: Number of classes, at least 1.
        in_channels: Channels of the images, at least 1; left out, 1 for `small_resnet` and `small_vit`, 3 for the
            others. Those of torchvision get another first convolution if it is not 3.
        model_args: Further arguments of the network, as plain numbers, strings and lists: `width` and
            `blocks` of `small_resnet`, `image_size`, `patch_size`, `width`, `heads` and `depth` of
            `small_vit`, `depth`, `width` and `weights` (a file) of `cifar_resnet`, or what the torchvision
            network takes. There `weights: DEFAULT` starts from pretrained weights, which torchvision
            downloads.
        optimizer: Makes the optimizer from the parameters, in YAML a `class_path` with `init_args`. Left out
            it is AdamW as torch has it.
        lr_scheduler: Makes the learning rate scheduler from the optimizer. It steps once an epoch,
            `OneCycleLR` and `CyclicLR` once a batch. `lightning.pytorch.cli.ReduceLROnPlateau` names the
            metric to watch, the one of torch does not.

    Raises:
        ValueError: If no network is called `model`; the message names the closest ones.
        TypeError: If the network does not take `model_args`.

    Example:
        >>> classifier = ImageClassifier("small_resnet", num_classes=10, model_args={"width": 8})
        >>> classifier(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        model: str = "small_resnet",
        num_classes: int = 10,
        in_channels: int | None = None,
        model_args: dict[str, Any] | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        # Python callables would make checkpoints unreadable for torch.load(weights_only=True).
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        if in_channels is None:
            in_channels = 1 if model in ("small_resnet", "small_vit") else 3
        self.network = build_network(model, num_classes, in_channels, model_args)
        # As the signature's default, LightningCLI would hand AdamW's weight decay on to another optimizer.
        self.make_optimizer = optimizer or torch.optim.AdamW
        self.make_lr_scheduler = lr_scheduler
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Any:
        """Return what the network returns: logits `(batch, num_classes)`.

        GoogLeNet and Inception return a named tuple of logits and auxiliary logits while they train.
        """
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross entropy, auxiliary classifiers included with a weight of 0.3 each."""
        images, labels = batch
        logits, auxiliary = _split_outputs(self(images))
        loss = F.cross_entropy(logits, labels)
        for extra in auxiliary:
            loss = loss + AUXILIARY_LOSS_WEIGHT * F.cross_entropy(extra, labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log `val_loss` and `val_acc`."""
        self._evaluate(batch, "val", self.val_accuracy)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log `test_loss` and `test_acc`."""
        self._evaluate(batch, "test", self.test_accuracy)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, with its scheduler and when to step it if there is one.

        Raises:
            TypeError: If the scheduler waits for a metric and does not say which.
        """
        optimizer = self.make_optimizer(self.parameters())
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = self.make_lr_scheduler(optimizer)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": "epoch"}
        if isinstance(scheduler, _STEPPED_PER_BATCH):
            config["interval"] = "step"
        elif isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = scheduler.monitor
        elif isinstance(scheduler, schedulers.ReduceLROnPlateau):
            raise TypeError(
                "lr_scheduler made a torch.optim.lr_scheduler.ReduceLROnPlateau, which does not say which "
                "metric it watches. Use lightning.pytorch.cli.ReduceLROnPlateau with monitor='val_loss'."
            )
        return {"optimizer": optimizer, "lr_scheduler": config}

    def _evaluate(self, batch: tuple[Tensor, Tensor], split: str, accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
        logits, _ = _split_outputs(self(images))
        accuracy(logits, labels)
        loss = F.cross_entropy(logits, labels)
        self.log(f"{split}_loss", loss, batch_size=len(labels), sync_dist=True)
        self.log(f"{split}_acc", accuracy, prog_bar=True, batch_size=len(labels))


def _split_outputs(outputs: Any) -> tuple[Tensor, list[Tensor]]:
    """Return the logits and the auxiliary logits, which are absent or None where a network has none."""
    if isinstance(outputs, Tensor):
        return outputs, []
    logits, *auxiliary = outputs
    return logits, [extra for extra in auxiliary if extra is not None]
