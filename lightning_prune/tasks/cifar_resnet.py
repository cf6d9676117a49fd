"""The residual networks for CIFAR of He et al., with shortcuts that have no parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.network.argument_checks import check_integer
from lightning_prune.tasks.networks import stage


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels, `depth` = 6n + 2 layers for n blocks a stage.

    He et al. 2016, 'Deep residual learning for image recognition', section 4.2, with their shortcut A: where a stage
    begins, every second pixel, and zeros for the channels that are new. The names of layers are those of the weights
    that Yerlan Idelbayev published (akamaster/pytorch_resnet_cifar10), which `weights` loads.

    Args:
        depth: Number of layers: 8, 14, 20, 32, 44, 56, 110, or any other 6n + 2.
        num_classes: Number of outputs, at least 1.
        in_channels: Channels of the images, at least 1.
        width: Channels of the first stage.
        weights: File with published weights to start from, None for random ones.

    Raises:
        ValueError: If an argument is outside its range, or the file holds the weights of another network.

    Example:
        >>> sum(p.numel() for p in CifarResNet(20).parameters())
        269722
        >>> CifarResNet(20)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 16,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"CifarResNet depth={depth} must be 6n + 2: 8, 14, 20, 32, 44, 56, 110")
        for name, value in {"num_classes": num_classes, "in_channels": in_channels, "width": width}.items():
            check_integer(self, name, value, minimum=1)
        blocks = depth // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = stage(width, width, blocks, 1, _Shortcut)
        self.layer2 = stage(width, 2 * width, blocks, 2, _Shortcut)
        self.layer3 = stage(2 * width, 4 * width, blocks, 2, _Shortcut)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
        if weights is not None:
            self._load(weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(batch, num_classes)` of `images` `(batch, in_channels, height, width)`."""
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.linear(features.mean((2, 3)))

    def _load(self, path: str) -> None:
        if not Path(path).is_file():
            raise ValueError(f"CifarResNet weights={path!r} is no file")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state = {name.removeprefix("module."): value for name, value in content.get("state_dict", content).items()}
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"CifarResNet weights={path!r} are those of another network: {error}") from error


class _Shortcut(nn.Module):
    """Every `stride`-th pixel, with as many channels of zeros before as behind."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, (out_channels - in_channels) // 2

    def forward(self, features: Tensor) -> Tensor:
        pixels = features[:, :, :: self.stride, :: self.stride]
        return F.pad(pixels, (0, 0, 0, 0, self.padding, self.padding))
