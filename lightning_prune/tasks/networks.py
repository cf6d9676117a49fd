"""A small residual network for small images: the default network of the recipes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_prune.network.argument_checks import check_integer


class SmallResNet(nn.Module):
    """The CIFAR-style residual network of He et al. (2016), section 4.2, with projection shortcuts.

    A 3x3 stem at full resolution, then three stages of basic blocks with `width`, `2 * width` and `4 * width`
    channels; the second and the third stage halve the resolution. Average pooling at the end makes it
    independent of the image size, so 8x8 digits, 28x28 MNIST and 32x32 CIFAR images all fit. ResNet-20 has
    `width=16, blocks=3`.

    Args:
        num_classes: Number of outputs, at least 1.
        in_channels: Channels of the images: 1 for gray, 3 for color.
        width: Channels of the stem and of the first stage, at least 1.
        blocks: Residual blocks per stage, at least 1.

    Shapes:
        images `(batch, in_channels, height, width)` with height and width of at least 4, to logits
        `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is below 1.

    Example:
        >>> network = SmallResNet(num_classes=10, in_channels=1, width=8)
        >>> network(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 16, blocks: int = 1) -> None:
        super().__init__()
        arguments = {"num_classes": num_classes, "in_channels": in_channels, "width": width, "blocks": blocks}
        for name, value in arguments.items():
            check_integer(self, name, value, minimum=1)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = stage(width, width, blocks, 1, _projection)
        self.layer2 = stage(width, 2 * width, blocks, 2, _projection)
        self.layer3 = stage(2 * width, 4 * width, blocks, 2, _projection)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(batch, num_classes)` of `images`."""
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.fc(torch.flatten(self.avgpool(features), 1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut = shortcut

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the shape that the shortcut makes."""
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(features)))))
        return self.relu(residual + self.shortcut(features))


def stage(
    in_channels: int, out_channels: int, blocks: int, stride: int, shortcut: Callable[[int, int, int], nn.Module]
) -> nn.Sequential:
    """Blocks, of which the first changes the shape; there `shortcut(in_channels, out_channels, stride)` does, too."""
    same = stride == 1 and in_channels == out_channels
    first = nn.Identity() if same else shortcut(in_channels, out_channels, stride)
    rest = [BasicBlock(out_channels, out_channels, 1, nn.Identity()) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride, first), *rest)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
