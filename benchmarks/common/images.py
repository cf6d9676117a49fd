"""CIFAR-10 from zip files of JPEG images: tensors on the device, without worker processes.

A file ``train.zip`` holds ``train/CLASS/NUMBER.jpg``; it is decoded once and kept as tensors in a temporary folder.
Batches are cut, cropped and flipped where the images are.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the published weights were trained with
MARGIN = 4  # pixels, of the random crop
HELD_OUT = 10  # every tenth training image of a class is for choices


@dataclass(frozen=True)
class Images:
    """Pixels ``(n, 3, 32, 32)``, uint8, and labels ``(n,)``, int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, index: Tensor) -> Images:
        return Images(self.pixels[index], self.labels[index])

    def to(self, device: torch.device) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device))


@cache
def load(root: Path, split: str) -> Images:
    """All images of ``train`` or ``test``, in the order of classes and file names."""
    source = root / "cifar10-jpeg" / f"{split}.zip"
    if not source.is_file():
        raise FileNotFoundError(f"no images at {source}; set LIGHTNING_PRUNE_DATA or give --data the folder above it")
    state = source.stat()
    kept = Path(tempfile.gettempdir()) / f"cifar10-jpeg-{split}-{state.st_size}-{state.st_mtime_ns}.pt"
    if not kept.is_file():
        images = decode(source)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            torch.save({"pixels": images.pixels, "labels": images.labels}, file)
        os.replace(file.name, kept)  # whole, or not there, whoever else does the same
    return Images(**torch.load(kept, weights_only=True))


def decode(source: Path) -> Images:
    pixels, classes = [], []
    with zipfile.ZipFile(source) as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".jpg")):
            with Image.open(BytesIO(archive.read(name))) as image:
                pixels.append(np.asarray(image.convert("RGB")))
            classes.append(name.split("/")[-2])
    names = sorted(set(classes))
    labels = torch.tensor([names.index(name) for name in classes])
    return Images(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), labels)


def balanced(images: Images, count: int | None) -> Images:
    """The first images of every class, ``count`` in all; None for all of them."""
    if count is None:
        return images
    rank = rank_in_class(images.labels)
    return images.pick(rank < count // int(images.labels.max() + 1))


def held_out(images: Images) -> tuple[Images, Images]:
    """What trains and what decides where choices are made: every tenth image of a class."""
    decides = rank_in_class(images.labels) % HELD_OUT == HELD_OUT - 1
    return images.pick(~decides), images.pick(decides)


def rank_in_class(labels: Tensor) -> Tensor:
    """How many images of the same class come before each image."""
    one_hot = F.one_hot(labels)
    return (one_hot.cumsum(0) - 1).gather(1, labels[:, None])[:, 0]


def normalized(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def augmented(pixels: Tensor) -> Tensor:
    """Each image cropped at random from black margins of four pixels and flipped every second time."""
    count, _, height, width = pixels.shape
    padded = F.pad(pixels, (MARGIN,) * 4)
    top, left = torch.randint(2 * MARGIN + 1, (2, count, 1), device=pixels.device)
    rows = top + torch.arange(height, device=pixels.device)
    columns = left + torch.arange(width, device=pixels.device)
    columns = torch.where(torch.rand(count, 1, device=pixels.device) < 0.5, columns.flip(1), columns)
    which = torch.arange(count, device=pixels.device)[:, None, None]
    # indices around a slice put the sliced dimension last
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Batches:
    """Shuffled, augmented batches of one size, anew in every pass."""

    def __init__(self, images: Images, batch: int) -> None:
        self.images, self.batch = images, batch

    def __len__(self) -> int:
        return len(self.images) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), device=self.images.labels.device)
        for start in range(0, len(self) * self.batch, self.batch):
            index = order[start : start + self.batch]
            yield normalized(augmented(self.images.pixels[index])), self.images.labels[index]


class TrainingImages(LightningDataModule):
    """Training batches that are on the Trainer's device already."""

    def __init__(self, images: Images, batch: int) -> None:
        super().__init__()
        self.images, self.batch = images, batch

    def train_dataloader(self) -> Batches:
        assert self.trainer is not None
        return Batches(self.images.to(self.trainer.strategy.root_device), self.batch)


@torch.inference_mode()
def accuracy(network: nn.Module, images: Images, device: torch.device, batch: int = 1000) -> float:
    """Share of ``images`` that ``network`` classifies right, in float32."""
    network.to(device).eval()
    right = torch.zeros((), device=device)
    on_device = images.to(device)
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        found = network(normalized(on_device.pixels[part])).argmax(1)
        right += (found == on_device.labels[part]).sum()
    return float(right) / len(images)
