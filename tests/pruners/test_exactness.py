"""Removing half of the channels of well-known networks equals masking them.

For every network: pruned output = masked output, widths as ``Ratio(0.5)`` says, and training goes on.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from lightning_prune.budgets import Ratio
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.dense_reference import DenseReference
from lightning_prune.coupling import find_coupling
from lightning_prune.criteria import Magnitude
from lightning_prune.functional import prune_once
from lightning_prune.granularity import Channels
from lightning_prune.network.example_input import Example
from lightning_prune.network.size import count_macs
from lightning_prune.network.tensors import tensors_in
from lightning_prune.surgery.apply import apply_plan, zero_removed
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.removal import plan_removal

IMAGE_PIXELS = 64
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Zoo:
    """A torchvision network; ``known`` are widths after half of every group is gone, written down by hand."""

    build: Callable[..., nn.Module]
    known: dict[str, int]
    groups: int


ZOO = {
    "resnet18": Zoo(models.resnet18, {"conv1": 32, "layer2.0.conv1": 64, "layer4.1.conv2": 256, "fc": 10}, 12),
    "resnet50": Zoo(models.resnet50, {"conv1": 32, "layer1.0.conv3": 128, "layer4.2.conv3": 1024, "fc": 10}, 37),
    "vgg11_bn": Zoo(models.vgg11_bn, {"features.0": 32, "features.25": 256, "classifier.0": 2048}, 10),
    "mobilenet_v2": Zoo(
        models.mobilenet_v2,
        {"features.0.0": 16, "features.1.conv.0.0": 16, "features.2.conv.1.0": 48, "features.18.0": 640},
        25,
    ),
    "densenet121": Zoo(
        models.densenet121,
        {"features.conv0": 32, "features.denseblock1.denselayer1.conv2": 16, "features.transition3.conv": 256},
        120,
    ),
    "googlenet": Zoo(
        lambda **options: models.googlenet(init_weights=False, aux_logits=True, **options),
        {"conv1.conv": 32, "inception3a.branch1.conv": 32, "inception5b.branch4.1.conv": 64, "aux1.fc1": 512},
        61,
    ),
    "shufflenet_v2_x0_5": Zoo(models.shufflenet_v2_x0_5, {"conv1.0": 12, "conv5.0": 512, "stage2.0.branch2.0": 12}, 22),
    "regnet_y_400mf": Zoo(
        models.regnet_y_400mf, {"stem.0": 16, "trunk_output.block1.block1-0.f.a.0": 24, "fc": 10}, 53
    ),
}  # fmt: skip


def build(name: str) -> nn.Module:
    """The network with every parameter random, batch-norm statistics too: defaults would hide errors."""
    torch.manual_seed(0)
    model = ZOO[name].build(weights=None, num_classes=10)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NORMS):
                module.running_mean.normal_(0, 0.3, generator=draw)
                module.running_var.uniform_(0.5, 1.5, generator=draw)
                module.weight.uniform_(0.5, 1.5, generator=draw)
                module.bias.normal_(0, 0.3, generator=draw)
            elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                module.bias.normal_(0, 0.1, generator=draw)
    return model


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(2, 3, IMAGE_PIXELS, IMAGE_PIXELS, generator=draw, dtype=torch.float32).to(dtype)


def outputs(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(tensors_in(model(inputs)))


def relative_errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert b.isfinite().all()
        assert b.std() > 1e-3, "an output that is all alike proves nothing"
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("name", ZOO)
def test_half_of_the_channels_removed_equals_masked(name: str) -> None:
    model, inputs = build(name).eval(), images()
    masked, dense = copy.deepcopy(model), outputs(model, inputs)
    coupling = find_coupling(model, Example.of(inputs))
    before = {tensor: value.shape for tensor, value in tensors_of(model).items()}

    report = prune_once(model, inputs, granularity=Channels(), criterion=Magnitude(), budget=Ratio(0.5))
    zero_removed(masked, report.plan)

    assert max(relative_errors(outputs(model, inputs), outputs(masked, inputs))) <= 1e-5
    assert max(relative_errors(outputs(model, inputs), dense)) > 0.01  # pruning does something

    # Widths: half of every group, rounded up at .5, and every tensor shorter by what its groups lost in it.
    assert len(coupling.groups) == len(report.widths) == ZOO[name].groups
    assert report.inexact == {}
    for group, (units, kept) in report.widths.items():
        assert (units, kept) == (coupling.groups[group].size, (coupling.groups[group].size + 1) // 2)
    expected = {tensor: list(shape) for tensor, shape in before.items()}
    for group_name, group in coupling.groups.items():
        for member in group.members:
            units, kept = report.widths[group_name]
            expected[member.tensor][member.dim] -= (units - kept) * member.index.shape[1]
    assert {tensor: list(value.shape) for tensor, value in tensors_of(model).items()} == expected
    for layer, width in ZOO[name].known.items():
        assert model.get_submodule(layer).weight.shape[0] == width, layer

    params = sum(parameter.numel() for parameter in model.parameters())
    assert report.after.params == params < 0.35 * report.before.params
    assert report.after.macs == count_macs(model, Example.of(inputs)) < 0.4 * report.before.macs
    assert report.sparsity == pytest.approx(1 - params / report.before.params)

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    start = {tensor: value.detach().clone() for tensor, value in model.named_parameters()}
    sum(output.square().mean() for output in tensors_in(model(inputs))).backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())
    optimizer.step()
    assert all(value.isfinite().all() for value in model.parameters())
    assert sum(not torch.equal(value, start[tensor]) for tensor, value in model.named_parameters()) > 0.5 * len(start)


def test_auxiliary_heads_of_googlenet_equal_masked_ones_too() -> None:
    model, inputs = build("googlenet"), images()
    masked = copy.deepcopy(model)
    zero_removed(masked, prune_once(model, inputs).plan)
    for network in (model, masked):  # the heads exist in train mode only; everything that draws or averages is off
        network.eval()
        network.training = True
    found, expected = outputs(model, inputs), outputs(masked, inputs)
    assert len(found) == 3
    assert max(relative_errors(found, expected)) <= 1e-5


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_float64_is_exact_to_its_own_precision(name: str) -> None:
    model, inputs = build(name).double().eval(), images(torch.float64)
    masked = copy.deepcopy(model)
    zero_removed(masked, prune_once(model, inputs).plan)
    assert max(relative_errors(outputs(model, inputs), outputs(masked, inputs))) <= 1e-10
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_a_wrong_plan_would_be_seen() -> None:
    # Guards this file: removing other channels than those masked must give a large error.
    model, inputs = build("resnet18").eval(), images()
    masked = copy.deepcopy(model)
    plan = prune_once(model, inputs).plan
    shifted = {
        tensor: {dim: (index + 1) % masked.state_dict()[tensor].shape[dim] for dim, index in dims.items()}
        for tensor, dims in plan.keep.items()
    }
    zero_removed(masked, Plan(shifted))
    assert max(relative_errors(outputs(model, inputs), outputs(masked, inputs))) > 0.01


@pytest.mark.parametrize("share", [0.25, 0.9])
def test_several_events_in_a_row_stay_exact(share: float) -> None:
    model, inputs = build("resnet18").eval(), images()
    masked = copy.deepcopy(model)
    first = prune_once(model, inputs, budget=Ratio(share)).plan
    second = prune_once(model, inputs, budget=Ratio(0.3)).plan
    zero_removed(masked, first.then(second))
    assert max(relative_errors(outputs(model, inputs), outputs(masked, inputs))) <= 1e-5


@pytest.mark.parametrize("name", [name for name in ZOO if name != "vgg11_bn"])
def test_predicted_params_and_macs_are_those_of_the_pruned_network(name: str) -> None:
    model, example = build(name), Example.of(images()[:1])
    coupling = find_coupling(model, example)
    draw = torch.Generator().manual_seed(3)
    scores = {group: torch.rand(g.size, generator=draw) for group, g in coupling.groups.items()}
    space = ChannelSpace(coupling, scores, DenseReference.of(coupling))
    assert space.dense.params == sum(parameter.numel() for parameter in model.parameters())
    assert space.dense.macs == count_macs(model, example)
    kept = {group: int(torch.randint(1, g.size + 1, (), generator=draw)) for group, g in coupling.groups.items()}
    for bundle in coupling.bundles:
        kept.update({group: units * 2 for group, units in bundle.quantum.items()})
    apply_plan(model, plan_removal(space.lowest(kept), coupling))
    assert space.params(kept) == pytest.approx(sum(parameter.numel() for parameter in model.parameters()), abs=0.5)
    assert space.macs(kept) == pytest.approx(count_macs(model, example), abs=0.5)
