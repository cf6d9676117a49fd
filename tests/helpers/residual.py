"""A small residual network, with data as in helpers: four blocks of which each can go."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.training import Lit

BLOCKS = ["net.1", "net.2", "net.3", "net.4"]


class Block(nn.Module):
    """A convolution, a norm and another convolution beside a shortcut; ``scale`` says how much it changes."""

    def __init__(self, width: int = 6, scale: float = 1.0) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.scale = nn.Conv2d(width, width, 1), scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.conv2(self.bn(self.conv1(x)).relu())


def residual_net(width: int = 6, dropout: float = 0.0) -> nn.Sequential:
    """A stem, four blocks and a head; the blocks matter the less, the later they come."""
    blocks = [Block(width, scale) for scale in (1.0, 0.3, 0.1, 0.03)]
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(width, 3))
    return nn.Sequential(nn.Conv2d(2, width, 1), *blocks, *tail)


class LitResidual(Lit):
    """The same classifier with a residual network; begins with the same weights every time."""

    def __init__(self, optimizer: str = "sgd", lr: float = 0.05, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        super().__init__(optimizer=optimizer, lr=lr)
        self.save_hyperparameters()
        self.net = residual_net(dropout=dropout)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("val_loss", loss)
        return loss

    test_step = validation_step
