"""What half of every dimension of a network of torchvision would cost, counted without ``lightning_prune``."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from common.zoo import family

# Layers that make the outputs, by torchvision module; one line a family.
OUTPUTS = {
    "alexnet": ["classifier.6"],
    "convnext": ["classifier.2"],
    "densenet": ["classifier"],
    "efficientnet": ["classifier.1"],
    "googlenet": ["fc", "aux?.fc2"],
    "inception": ["fc", "AuxLogits.fc"],
    "maxvit": ["classifier.5"],
    "mnasnet": ["classifier.1"],
    "mobilenetv2": ["classifier.1"],
    "mobilenetv3": ["classifier.3"],
    "regnet": ["fc"],
    "resnet": ["fc"],
    "s3d": ["classifier.1"],
    "shufflenetv2": ["fc"],
    "squeezenet": ["classifier.1"],
    "swin_transformer": ["head"],
    "mvit": ["head.1"],
    "vgg": ["classifier.6"],
    "vision_transformer": ["heads.head"],
    "deeplabv3": ["classifier.4", "aux_classifier.4"],
    "fcn": ["classifier.4", "aux_classifier.4"],
    "lraspp": ["classifier.*_classifier"],
    "raft": ["update_block.flow_head.conv2", "mask_predictor.conv"],
    "faster_rcnn": ["rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor.*"],
    "mask_rcnn": [
        "rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor.*",
        "roi_heads.mask_predictor.mask_fcn_logits",
    ],
    "keypoint_rcnn": [
        "rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor.*",
        "roi_heads.keypoint_predictor.kps_score_lowres",
    ],
    "retinanet": ["head.*_head.cls_logits", "head.*_head.bbox_reg"],
    "fcos": ["head.*_head.cls_logits", "head.*_head.bbox_reg", "head.*_head.bbox_ctrness"],
    "ssd": ["head.*_head.module_list.?"],
    "ssdlite": ["head.*_head.module_list.?.1"],
}  # fmt: skip
# Layers whose inputs are no channels of the network, though there are more than three.
INPUTS = {"raft": ["update_block.motion_encoder.convcorr1.0"]}  # as many correlations as the search window has


def halved(name: str, model: nn.Module) -> int:
    """Parameters left when every dimension but the network's inputs and outputs is halved.

    Half of an odd size is rounded up, as ``Ratio(0.5)`` does. Counted are, tensor by tensor:

    - convolutions: output channels, and input channels inside each group; the number of groups stays, but for depthwise
      ones, which have one group a channel and so only their output channels,
    - linear layers: outputs and inputs; biases and norms: their one dimension,
    - attention: width of the stream, of queries, keys and values (that is, heads x head width); the number of heads
      stays, and with it what has one entry a head (relative position biases, logit scales),
    - embeddings of positions, class tokens and layer scales: the width of the stream; tables of relative positions of
      MViT: the width of a head.

    Not halved are the outputs of the layers in ``OUTPUTS``, inputs of three or fewer (colors, flow, coordinates), and
    ``INPUTS``.
    """
    outputs, pinned = OUTPUTS[family(name)], INPUTS.get(family(name), [])
    total = 0
    seen: set[int] = set()
    for path, module in model.named_modules():
        keep_out = any(fnmatchcase(path, pattern) for pattern in outputs)
        keep_in = any(fnmatchcase(path, pattern) for pattern in pinned)
        for own_name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                total += math.prod(_halved_shape(module, own_name, parameter, keep_out, keep_in))
    return total


def allowed(name: str) -> float:
    """How much more than ``halved`` may be left: more where channels are shuffled or come in groups."""
    return 1.3 if name.startswith(("shufflenet", "resnext", "regnet")) else 1.05


def half(size: int) -> int:
    """What ``Ratio(0.5)`` keeps of ``size``."""
    return max(1, (size + 1) // 2)


def _halved_shape(module: nn.Module, name: str, parameter: Tensor, keep_out: bool, keep_in: bool) -> list[int]:
    shape = list(parameter.shape)
    if name == "relative_position_bias_table" or name == "logit_scale":
        return shape
    if name.startswith("rel_pos_") or "pos" in name or name == "class_token":
        return [*shape[:-1], half(shape[-1])]
    if len(shape) == 1 or name == "layer_scale":
        heads = isinstance(module, nn.Linear) and keep_out
        return shape if keep_out or heads else [half(shape[0]), *shape[1:]]
    out_dim, in_dim = (1, 0) if getattr(module, "transposed", False) else (0, 1)
    if not keep_out and not _one_entry_a_head(module):
        shape[out_dim] = half(shape[out_dim])
    depthwise = isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels
    if not keep_in and not depthwise and shape[in_dim] > 3:
        shape[in_dim] = half(shape[in_dim])
    return shape


def _one_entry_a_head(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.bias is None and module.out_features <= 64  # Swin V2's cpb_mlp
