"""Every non-quantised network of torchvision, with inputs that fit, outputs that prove something, and a loss."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torchvision.models import get_model, get_model_builder, list_models
from torchvision.ops import FrozenBatchNorm2d

FLAVOURS = ("tiny", "small", "default")  # see `build`
NORMS = (nn.modules.batchnorm._NormBase, FrozenBatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def names() -> list[str]:
    """Every network of torchvision that is not quantised."""
    return [name for name in list_models() if not name.startswith("quantized")]


def family(name: str) -> str:
    """The torchvision module that a network comes from, such as ``"resnet"``."""
    return get_model_builder(name).__module__.rpartition(".")[2]


def task(name: str) -> str:
    """``classification``, ``segmentation``, ``detection``, ``video`` or ``optical_flow``."""
    parts = get_model_builder(name).__module__.split(".")
    return parts[2] if len(parts) == 4 else "classification"


def build(name: str, flavour: str = "small", seed: int = 0) -> nn.Module:
    """The network with random weights, in train mode.

    Large tensors are drawn once and in one way, scaled by their fan-in, as the constructors' own draws take half a
    minute for the largest networks.

    Args:
        name: As torchvision lists it.
        flavour: ``"default"`` builds what torchvision builds without arguments (auxiliary heads of segmentation are
            on); ``"small"`` fits smaller inputs where the size is the constructor's matter; ``"tiny"`` has fewer layers
            besides, for transformers.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in get_model_builder(name).__annotations__:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if family(name) in ("fcn", "deeplabv3"):
        options["aux_loss"] = True
    if flavour != "default":
        options.update(_small_options(name))
    with _quick_draws(), _changed_builder(name, flavour):
        return get_model(name, **options)


def inputs(name: str, flavour: str = "small", batch: int = 2, seed: int = 1) -> Any:
    """What ``prune_once`` gets for its example: a tensor, or a tuple of arguments."""
    draw = torch.Generator().manual_seed(seed)

    def image(*size: int) -> Tensor:
        return torch.rand(*size, generator=draw)

    small = flavour != "default"
    kind, kin = task(name), family(name)
    if kind == "detection":
        size = _SSD_PIXELS.get(kin, 96 if small else 224)
        return ([image(3, size, size) for _ in range(batch)],)
    if kind == "optical_flow":
        size = 128 if small else 256
        pair = image(batch, 3, size, size), image(batch, 3, size, size)
        return (*pair, 3) if small else pair  # the third argument: updates of the flow
    if kind == "video":
        clip = {"s3d": (14, 210), "mvit": (4, 64)}.get(kin, (4, 64)) if small else (16, 112 if kin == "resnet" else 224)
        return image(batch, 3, clip[0], clip[1], clip[1]) - 0.5
    size = 299 if kin == "inception" else 224
    if small:
        size = _vit_pixels(name) if kin == "vision_transformer" else {"inception": 299, "alexnet": 96}.get(kin, 64)
    return image(batch, 3, size, size) - 0.5


def randomise(model: nn.Module, seed: int = 2) -> nn.Module:
    """Random norm statistics and parameters, and random values in the place of constants, in place.

    Zero means, unit scales, zero gammas and tiny layer scales would hide a channel that is removed but missed.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NORMS):
                for name, value, fill in (
                    ("running_mean", 0.0, 0.2), ("running_var", 1.0, 0.5), ("weight", 1.0, 0.5), ("bias", 0.0, 0.2),
                ):  # fmt: skip
                    tensor = getattr(module, name, None)
                    if tensor is not None:
                        tensor.uniform_(value - fill, value + fill, generator=draw)
        own = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
        for parameter in model.parameters():
            if id(parameter) in own or parameter.numel() < 2:
                continue
            first = parameter.flatten()[0]
            if (parameter == first).all() and abs(first) > 1e-3:  # a constant that means something
                parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 1.5, generator=draw))
            elif (parameter == first).all() and parameter.dim() > 1 and parameter.shape[1:].numel() > 1:
                parameter.normal_(0, _fan_in(parameter) ** -0.5, generator=draw)
            elif (parameter == first).all() or parameter.dim() == 1:
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=draw))
    return model


def run(model: nn.Module, example: Any) -> Any:
    """What the model returns for what ``inputs`` gave."""
    return model(*example) if isinstance(example, tuple) else model(example)


@torch.no_grad()
def raw_outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """The outputs of the network proper, in the mode it is in.

    Of detectors, everything the heads say, before anything is dropped by score or overlap: region proposals, and the
    box, mask and keypoint heads on fixed boxes of several sizes.
    """
    if not hasattr(model, "transform"):
        return _tensors(run(model, example))
    images, _ = model.transform(list(example[0]))
    features = model.backbone(images.tensors)
    features = {"0": features} if isinstance(features, Tensor) else features
    if not hasattr(model, "roi_heads"):
        return _tensors(model.head(list(features.values())))
    heads = model.roi_heads
    boxes = [_fixed_boxes(size) for size in images.image_sizes]
    results = [model.rpn.head(list(features.values()))]
    results.append(heads.box_predictor(heads.box_head(heads.box_roi_pool(features, boxes, images.image_sizes))))
    if heads.has_mask():
        pooled = heads.mask_roi_pool(features, boxes, images.image_sizes)
        results.append(heads.mask_predictor(heads.mask_head(pooled)))
    if heads.has_keypoint():
        pooled = heads.keypoint_roi_pool(features, boxes, images.image_sizes)
        results.append(heads.keypoint_predictor(heads.keypoint_head(pooled)))
    return _tensors(results)


def train_outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """What the model returns in train mode, auxiliary heads included; of detectors, their losses."""
    model.train()
    if not hasattr(model, "transform"):
        return _tensors(run(model, example))
    return _tensors(model(list(example[0]), [_target(model, image) for image in example[0]]))


def train_loss(model: nn.Module, example: Any) -> Tensor:
    """One number to go backward from; the model is in train mode afterwards."""
    return loss_of(model, train_outputs(model, example))


def loss_of(model: nn.Module, outputs: list[Tensor]) -> Tensor:
    """One number from what ``train_outputs`` gave."""
    return sum((out if hasattr(model, "transform") else out.square().mean() for out in outputs), torch.zeros(()))


_SSD_PIXELS = {"ssd": 300, "ssdlite": 320}  # they resize to these sizes whatever comes


def _vit_pixels(name: str) -> int:
    return {"16": 64, "32": 96, "14": 56}[name.rpartition("_")[2]]


def _small_options(name: str) -> dict[str, Any]:
    if family(name) == "vision_transformer":
        return {"image_size": _vit_pixels(name)}
    if family(name) == "maxvit":
        return {"input_size": (64, 64)}
    if family(name) in ("faster_rcnn", "mask_rcnn", "keypoint_rcnn"):
        proposals = {f"rpn_{when}_nms_top_n_{mode}": 40 for when in ("pre", "post") for mode in ("train", "test")}
        return {"min_size": 96, "max_size": 96, "box_batch_size_per_image": 32, **proposals}
    if family(name) in ("retinanet", "fcos"):
        return {"min_size": 96, "max_size": 96}
    return {}


@contextmanager
def _changed_builder(name: str, flavour: str) -> Iterator[None]:
    """Give torchvision's builders what they have no argument for: sizes, and fewer layers."""
    kin = family(name)
    sizes, layers = {
        "maxvit": ({"partition_size": 2}, {"block_layers": [1, 1, 1, 1]}),
        "mvit": ({"spatial_size": (64, 64), "temporal_size": 4}, {}),
        "swin_transformer": ({}, {"depths": [2, 1, 2, 1]}),
        "vision_transformer": ({}, {"num_layers": 2}),
    }.get(kin, ({}, {}))
    changes = {"default": {}, "small": sizes, "tiny": {**sizes, **layers}}[flavour]
    if not changes:
        yield
        return
    module = sys.modules[get_model_builder(name).__module__]
    function = "_swin_transformer3d" if name.startswith("swin3d") else f"_{kin}"
    original = getattr(module, function)
    with mock.patch.object(module, function, lambda **options: original(**{**options, **changes})):
        yield


@contextmanager
def _quick_draws() -> Iterator[None]:
    """Draw large tensors once, at the end, instead of at every initialization."""
    late: dict[int, Tensor] = {}

    def lazy(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def draw(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if tensor.dim() < 2 or tensor.numel() < 2**16:
                return original(tensor, *args, **kwargs)
            late[id(tensor)] = tensor
            return tensor

        return draw

    drawing = ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_")
    with mock.patch.multiple(nn.init, **{name: lazy(getattr(nn.init, name)) for name in drawing}):
        yield
    with torch.no_grad():
        for tensor in late.values():
            tensor.normal_(0, (2 / _fan_in(tensor)) ** 0.5 if tensor.dim() > 2 else _fan_in(tensor) ** -0.5)


def _fan_in(tensor: Tensor) -> int:
    return max(tensor.shape[1:].numel(), 1)


def _fixed_boxes(size: tuple[int, int]) -> Tensor:
    height, width = size
    corners = [(0, 0, 1, 1), (0.1, 0.2, 0.6, 0.9), (0.3, 0.3, 0.5, 0.45), (0.5, 0.05, 0.95, 0.5), (0.7, 0.7, 0.8, 0.9)]
    return torch.tensor(corners) * torch.tensor([width, height, width, height], dtype=torch.float32)


def _target(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    height, width = image.shape[-2:]
    boxes = _fixed_boxes((height, width))[1:3]
    target = {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}
    heads = getattr(model, "roi_heads", None)
    if heads is not None and heads.has_mask():
        masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
        for mask, box in zip(masks, boxes.long(), strict=True):
            mask[box[1] : box[3], box[0] : box[2]] = 1
        target["masks"] = masks
    if heads is not None and heads.has_keypoint():
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        target["keypoints"] = torch.cat([centers, torch.ones(len(boxes), 1)], 1)[:, None].repeat(1, 17, 1)
    return target


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):  # googlenet's and inception's outputs in train mode
        tree = tuple(tree)
    leaves = [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]
    return [leaf.float() for leaf in leaves]
