"""From a name to a classification network: our own or any that torchvision has."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torchvision import models

from lightning_prune.network.argument_checks import check_integer
from lightning_prune.tasks.cifar_resnet import CifarResNet
from lightning_prune.tasks.networks import SmallResNet
from lightning_prune.tasks.small_vit import SmallViT

_OWN: Mapping[str, Callable[..., nn.Module]] = {
    "small_resnet": SmallResNet,
    "small_vit": SmallViT,
    "cifar_resnet": CifarResNet,
}


def build_network(
    name: str, num_classes: int, in_channels: int, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return the classification network called `name`.

    The networks of torchvision are made for RGB images. For another `in_channels` the first convolution is
    replaced: each of its input channels gets the mean filter of R, G and B times `3 / in_channels`, which
    keeps the size of the activations and for gray images equals feeding the image three times. With
    `arguments={"weights": "DEFAULT"}` (or another name of torchvision's weights) the network starts
    pretrained; its classifier is drawn anew where the weights were made for another number of classes.

    Args:
        name: `"small_resnet"`, `"small_vit"`, `"cifar_resnet"`, or a name from
            `torchvision.models.list_models(module=torchvision.models)`.
        num_classes: Number of outputs, at least 1.
        in_channels: Channels of the images, at least 1.
        arguments: Keyword arguments of that network's own constructor.

    Raises:
        ValueError: If no network has that name, `num_classes` or `in_channels` is below 1, or the weights do
            not exist.
        TypeError: If the network has no such argument.

    Example:
        >>> build_network("resnet18", num_classes=5, in_channels=1).conv1
        Conv2d(1, 64, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), bias=False)
    """
    check_integer("build_network", "num_classes", num_classes, minimum=1)
    check_integer("build_network", "in_channels", in_channels, minimum=1)
    known = [*_OWN, *models.list_models(module=models)]
    if name not in known:
        closest = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
        raise ValueError(
            f"model={name!r} is no known network. "
            + (f"Did you mean {', '.join(map(repr, closest))}? " if closest else "")
            + f"Known are {', '.join(map(repr, _OWN))} and the names in "
            "torchvision.models.list_models(module=torchvision.models)."
        )
    try:
        if name in _OWN:
            return _OWN[name](num_classes=num_classes, in_channels=in_channels, **(arguments or {}))
        return _torchvision_network(name, num_classes, in_channels, dict(arguments or {}))
    except TypeError as error:
        raise TypeError(f"model={name!r} does not take model_args={arguments!r}: {error}") from error


def _torchvision_network(name: str, num_classes: int, in_channels: int, arguments: dict[str, Any]) -> nn.Module:
    weights = arguments.pop("weights", None)
    if weights is None:
        network = models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    else:
        network = _pretrained_network(name, weights, num_classes, arguments)
    if in_channels != 3:
        _replace_stem(network, in_channels)
    return network


def _pretrained_network(name: str, weights: str, num_classes: int, arguments: dict[str, Any]) -> nn.Module:
    available = models.get_model_weights(name)
    # VGG-16 also has weights without a classifier: those cannot be finetuned from as they are.
    names = [label for label, entry in available.__members__.items() if entry.meta["categories"]]
    if weights not in names:
        raise ValueError(
            f"model_args has weights={weights!r}; {name!r} has {', '.join(names)}. "
            "Name one of them, or leave weights out to start from random ones."
        )
    network = models.get_model(name, weights=available[weights], **arguments)
    trained_classes = len(available[weights].meta["categories"])
    if num_classes != trained_classes:
        _replace_heads(network, trained_classes, num_classes)
    return network


def _replace_heads(network: nn.Module, trained_classes: int, num_classes: int) -> None:
    """Draw every classifier anew, the auxiliary ones of GoogLeNet and Inception included."""
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and module.out_features == trained_classes:
            head: nn.Module = nn.Linear(module.in_features, num_classes, bias=module.bias is not None)
        elif isinstance(module, nn.Conv2d) and module.out_channels == trained_classes:  # SqueezeNet
            head = nn.Conv2d(module.in_channels, num_classes, module.kernel_size)  # type: ignore[arg-type]
        else:
            continue
        network.set_submodule(path, head)


def _replace_stem(network: nn.Module, in_channels: int) -> None:
    # In each classification network of torchvision only the first convolution sees the image.
    path, old = next((path, m) for path, m in network.named_modules() if isinstance(m, nn.Conv2d))
    stem = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    with torch.no_grad():
        mean_filter = old.weight.mean(dim=1, keepdim=True)
        stem.weight.copy_((mean_filter * (3 / in_channels)).expand_as(stem.weight))
        if old.bias is not None and stem.bias is not None:
            stem.bias.copy_(old.bias)
    network.set_submodule(path, stem)
    if getattr(network, "transform_input", False):
        # The pretrained GoogLeNet and Inception renormalize R, G and B by index.
        network.transform_input = False  # type: ignore[assignment]
