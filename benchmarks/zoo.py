"""Every non-quantised network of torchvision, with inputs, raw outputs, and what half of its dimensions would cost.

``check`` prunes one of them without any hint and says in a dict what came out of it. The reference is independent of
``lightning_prune``: it counts parameters from module types and weight shapes alone.
"""

from __future__ import annotations

import copy
import gc
import math
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torchvision.models import get_model, get_model_builder, list_models
from torchvision.ops import FrozenBatchNorm2d

FLAVOURS = ("tiny", "small", "default")  # see `build`
LARGEST_ERROR = 1e-5  # of what is pruned against what is masked, in float32
LARGE_PARAMS = 250_000_000  # networks above are compared without a second copy
NORMS = (nn.modules.batchnorm._NormBase, FrozenBatchNorm2d, nn.LayerNorm, nn.GroupNorm)
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
CONVOLUTIONS = (nn.modules.conv._ConvNd,)

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
    return _loss(model, train_outputs(model, example))


def _loss(model: nn.Module, outputs: list[Tensor]) -> Tensor:
    return sum((out if hasattr(model, "transform") else out.square().mean() for out in outputs), torch.zeros(()))


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

    Not halved are the outputs of the layers in ``OUTPUTS``, inputs of three or fewer (colours, flow, coordinates), and
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
    depthwise = isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels
    if not keep_in and not depthwise and shape[in_dim] > 3:
        shape[in_dim] = half(shape[in_dim])
    return shape


def _one_entry_a_head(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.bias is None and module.out_features <= 64  # Swin V2's cpb_mlp


# --- the check


def check(name: str, flavour: str = "small", prune: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Prune a network with one call and no hint, and try everything that has to hold afterwards.

    Args:
        name: As torchvision lists it.
        flavour: See ``build``.
        prune: Instead of ``prune_once``.

    Returns:
        A row that goes into JSON. ``error`` is None where ``prune_once`` ran through; ``broken`` lists what does not
        hold afterwards. ``kept`` and ``halved`` are shares of the parameters, ``prunable`` the share in tensors of
        which at least one dimension lost something. ``relative_error`` compares with a copy in which the same channels
        are zero, ``exact_error`` does the same where only groups are pruned that no norm runs across (None where all
        groups are exact, or none is).
    """
    row: dict[str, Any] = {"name": name, "family": family(name), "task": task(name), "flavour": flavour}
    row.update(
        error=None,
        broken=[],
        frozen={},
        inexact={},
        halved=None,
        allowed=allowed(name),
        relative_error=None,
        exact_error=None,
    )
    started = time.perf_counter()
    try:
        _check(row, name, flavour, prune)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:400]}"
        last = traceback.extract_tb(error.__traceback__)[-1]
        row["where"] = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        row["broken"].append("prune_once fails" if "params" not in row else "the check fails")
    row["wall_s"] = round(time.perf_counter() - started, 2)
    gc.collect()
    return row


def problems(row: dict[str, Any]) -> list[str]:
    """What ``check`` found not to be as it should, an empty list if all is."""
    if row["error"]:
        return [row["error"]]
    found = list(row["broken"])
    error = row["exact_error"] if row["inexact"] else row["relative_error"]
    if error is None:
        found.append("no group is exact" if row["inexact"] else "the outputs were not compared")
    elif not error <= LARGEST_ERROR:
        found.append(f"relative error {error:.1e}")
    if row["kept"] > row["allowed"] * row["halved"]:
        found.append(f"keeps {row['kept'] / row['halved']:.2f} x the halved reference")
    if row["halved"] > 1.1 * row["kept"]:
        found.append(f"keeps only {row['kept'] / row['halved']:.2f} x the halved reference")
    found += [f"{len(names)} frozen: {reason}" for reason, names in row["frozen"].items() if "no rule for" in reason]
    return found


def _check(row: dict[str, Any], name: str, flavour: str, prune: Callable[..., Any] | None) -> None:
    from lightning_prune import prune_once
    from lightning_prune.surgery import zero_removed

    prune = prune_once if prune is None else prune
    model, example = randomise(build(name, flavour)), inputs(name, flavour)
    params = sum(parameter.numel() for parameter in model.parameters())
    row["halved"] = round(halved(name, model) / params, 4)
    _unusual_state(model)
    before = _state(model)
    mode = copy.copy(before["modes"])

    large = params > LARGE_PARAMS
    if large:  # mask, then remove what is zero: the lowest scores are those that were masked
        report = prune(model, example, dry_run=True)
        zero_removed(model, report.plan)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        expected, expected_train = _both(model, example, row)
        _set_modes(model, mode)
        for buffer_name, buffer in model.named_buffers():  # a pass in train mode has moved the norms' statistics
            buffer.copy_(buffers[buffer_name])
        masked: nn.Module | None = None
    else:
        masked = copy.deepcopy(model)
    started = time.perf_counter()
    again = prune(model, example)
    row["prune_s"] = round(time.perf_counter() - started, 3)
    if large and not _same_plan(again.plan, report.plan):
        row["broken"].append("the plan changes when what it removes is zero")
    report = again
    row.update(_figures(model, report, params))
    after = _state(model)
    row["broken"] += [f"{what} changed: {_first_difference(before[what], after[what])}" for what in before
                      if before[what] != after[what]]  # fmt: skip
    if masked is not None:
        zero_removed(masked, report.plan)
        expected, expected_train = _both(masked, example, row)
        del masked
    _compare(row, "relative_error", model, example, expected)
    _try_training(row, model, example, expected_train)
    del model, expected
    gc.collect()
    if report.inexact:
        _check_exact_groups(row, name, flavour, prune)


def _both(model: nn.Module, example: Any, row: dict[str, Any]) -> tuple[list[Tensor], list[tuple[int, ...]]]:
    model.eval()
    outputs = raw_outputs(model, example)
    if not outputs or any(out.numel() == 0 or not out.isfinite().all() or out.std() < 1e-4 for out in outputs):
        row["broken"].append("the masked network's outputs are empty, not finite or all alike: they prove nothing")
    row["smallest_std"] = min((float(out.std()) for out in outputs), default=0.0)
    with torch.no_grad():
        return outputs, [tuple(out.shape) for out in train_outputs(model, example)]


def _compare(row: dict[str, Any], key: str, model: nn.Module, example: Any, expected: list[Tensor]) -> None:
    model.eval()
    try:
        found = raw_outputs(model, example)
        with torch.no_grad():
            run(model, example)  # with scores and overlaps, for detectors
    except Exception as error:
        row["broken"].append(f"eval mode fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")
        return
    if [out.shape for out in found] != [out.shape for out in expected]:
        row["broken"].append("the shapes of the outputs changed in eval mode")
        return
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
    row[key] = max(errors) if all(math.isfinite(error) for error in errors) else math.inf


def _try_training(row: dict[str, Any], model: nn.Module, example: Any, shapes: list[tuple[int, ...]]) -> None:
    try:
        outputs = train_outputs(model, example)
        if [tuple(out.shape) for out in outputs] != shapes:
            row["broken"].append("the shapes of the outputs changed in train mode")
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        _loss(model, outputs).backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        row["without_gradient"] = sum(p.grad is None for p in trained)
        if any(p.grad is not None and p.grad.shape != p.shape for p in trained):
            row["broken"].append("a gradient has another shape than its parameter")
        optimizer.step()
        if row["without_gradient"] > 0.1 * len(trained):
            row["broken"].append(f"{row['without_gradient']} of {len(trained)} parameters got no gradient")
    except Exception as error:
        row["broken"].append(f"training fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")


def _check_exact_groups(row: dict[str, Any], name: str, flavour: str, prune: Callable[..., Any]) -> None:
    """The same again without the groups that a norm runs across."""
    from lightning_prune import Scope
    from lightning_prune.coupling import Example, analyse
    from lightning_prune.surgery import zero_removed

    model, example = randomise(build(name, flavour)), inputs(name, flavour)
    coupling = analyse(model, Example.of(example))
    touched = {m.tensor for g in coupling.groups.values() if g.inexact for m in g.members if not m.reads}
    scope = Scope(exclude=[path for path, _ in model.named_parameters() if path in touched])
    large = row["params"] > LARGE_PARAMS
    masked = model if large else copy.deepcopy(model)
    try:
        report = prune(model, example, scope=scope, dry_run=large)
    except ValueError as error:
        row.update(exact_groups=0, no_exact_groups=str(error)[:200])
        return
    row["exact_groups"] = len(report.widths)
    if report.inexact:
        row["broken"].append(f"the scope leaves {len(report.inexact)} inexact groups in")
    zero_removed(masked, report.plan)
    expected = raw_outputs(masked.eval(), example)
    del masked
    if large:
        prune(model, example, scope=scope)
    _compare(row, "exact_error", model, example, expected)


def _figures(model: nn.Module, report: Any, params: int) -> dict[str, Any]:
    from lightning_prune.plan import Plan

    assert isinstance(report.plan, Plan)
    left = sum(parameter.numel() for parameter in model.parameters())
    frozen, inexact = defaultdict(list), defaultdict(list)
    for name, reason in report.frozen.items():
        frozen[reason].append(name)
    for name, reason in report.inexact.items():
        inexact[reason].append(name)
    return {
        "params": params,
        "groups": len(report.widths),
        "kept": round(left / params, 4),
        "macs_kept": round(report.after.macs / max(report.before.macs, 1), 4),
        "prunable": round(_prunable(model, report.plan, params), 4),
        "frozen": dict(frozen),
        "inexact": dict(inexact),
    }


def _prunable(model: nn.Module, plan: Any, params: int) -> float:
    """Share of the original parameters in tensors that lost something; of their old sizes."""
    lost = 0
    for name, parameter in model.named_parameters():
        if name not in plan.keep:
            lost += parameter.numel()
    return 1 - lost / params


def _unusual_state(model: nn.Module) -> None:
    """Modes, flags and memory formats that are not the default, so that a reset of them is seen."""
    for parameter in model.parameters():
        if parameter.dim() in FORMATS:
            parameter.data = parameter.data.contiguous(memory_format=FORMATS[parameter.dim()])
    for number, module in enumerate(model.modules()):
        module.training = number % 3 != 1
    last = list(model.parameters())[-1]
    last.requires_grad_(False)


def _state(model: nn.Module) -> dict[str, Any]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "order of the parameters": [name for name, _ in model.named_parameters()],
        "identity of the parameters": [id(parameter) for parameter in model.parameters()],
        "dtypes": {name: tensor.dtype for name, tensor in tensors},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()},
        "channels_last": {
            name: tensor.is_contiguous(memory_format=FORMATS[tensor.dim()])
            for name, tensor in tensors if tensor.dim() in FORMATS
        },
    }  # fmt: skip


def _set_modes(model: nn.Module, modes: dict[str, bool]) -> None:
    for name, module in model.named_modules():
        module.training = modes[name]


def _first_difference(before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        return next(
            (f"{key} {before.get(key)} -> {after.get(key)}" for key in before if before.get(key) != after.get(key)),
            f"new: {sorted(set(after) - set(before))[:3]}",
        )
    return "another list"


def _same_plan(a: Any, b: Any) -> bool:
    return a.keep.keys() == b.keep.keys() and all(
        a.keep[name].keys() == b.keep[name].keys()
        and all(torch.equal(a.keep[name][dim], b.keep[name][dim]) for dim in a.keep[name])
        for name in a.keep
    )


# --- how each network is built and fed

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
    """Draw large tensors once, at the end, instead of at every initialisation."""
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
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        target["keypoints"] = torch.cat([centres, torch.ones(len(boxes), 1)], 1)[:, None].repeat(1, 17, 1)
    return target


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):  # googlenet's and inception's outputs in train mode
        tree = tuple(tree)
    leaves = [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]
    return [leaf.float() for leaf in leaves]
