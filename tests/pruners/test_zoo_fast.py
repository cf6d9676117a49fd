"""One small network of every family of torchvision, pruned by one call without hints."""

import pytest
import torch
from common import zoo, zoo_check, zoo_halved
from torch import nn

from lightning_prune import prune_once
from lightning_prune.budgets import Ratio

REPRESENTATIVES = (
    "densenet121", "fasterrcnn_mobilenet_v3_large_320_fpn", "fcn_resnet50", "googlenet", "mobilenet_v2", "r3d_18",
    "raft_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "ssdlite320_mobilenet_v3_large",
    "swin_t", "swin_v2_t", "vit_b_32",
)  # fmt: skip


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_half_of_a_network_goes_without_a_hint(name: str) -> None:
    row = zoo_check.check(name, "tiny")
    assert zoo_check.problems(row) == [], row


def test_every_network_of_torchvision_is_known() -> None:
    assert len(zoo.names()) >= 109
    assert {zoo.family(name) for name in zoo.names()} == zoo_halved.OUTPUTS.keys()


def test_the_halved_reference_of_a_plain_network_by_hand() -> None:
    network = zoo.build("vgg11")
    widths = [64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = sum(a * b * 9 + b for a, b in zip([3, *[w // 2 for w in widths]], [w // 2 for w in widths]))  # noqa: B905
    linear = 256 * 49 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 1000 + 1000
    assert zoo_halved.halved("vgg11", network) == convolutions + linear


def test_the_halved_reference_of_depthwise_and_odd_layers_by_hand() -> None:
    network = nn.ModuleDict({
        "depthwise": nn.Conv2d(6, 12, 3, groups=6),  # 6 channels in 6 groups: 6 outputs, one input each
        "grouped": nn.Conv2d(8, 12, 1, groups=2, bias=False),  # 6 outputs, 2 of the 4 inputs of each group
        "odd": nn.Linear(5, 7),  # 4 outputs, 3 inputs
        "fc": nn.Linear(7, 5),  # the output
    })  # fmt: skip
    assert zoo_halved.halved("resnet18", network) == (6 * 9 + 6) + 6 * 2 + (4 * 3 + 4) + (5 * 4 + 5)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "fasterrcnn_mobilenet_v3_large_320_fpn", "convnext_tiny"])
def test_nothing_in_a_random_network_is_constant(name: str) -> None:
    network = zoo.randomise(zoo.build(name, "tiny"))
    for path, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point() and tensor.numel() > 1:
            assert tensor.std() > 0, path
    again = zoo.randomise(zoo.build(name, "tiny"))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_raw_outputs_of_a_detector_do_not_depend_on_scores() -> None:
    name = "maskrcnn_resnet50_fpn"
    network, example = zoo.randomise(zoo.build(name)).eval(), zoo.inputs(name)
    outputs = zoo.raw_outputs(network, example)
    boxes = 2 * 5
    assert [tuple(out.shape) for out in outputs[-3:]] == [(boxes, 91), (boxes, 364), (boxes, 91, 28, 28)]
    assert all(out.std() > 1e-3 for out in outputs)
    assert len(outputs) == 5 + 5 + 3  # scores and boxes of five levels, and the three heads


def test_a_check_sees_what_is_wrong() -> None:
    # Guards this folder: a call that prunes nothing, and one that changes a flag, must not pass.
    def little(network: nn.Module, example: object, **options: object) -> object:
        return prune_once(network, example, budget=Ratio(0.1), **options)

    def flags(network: nn.Module, example: object, **options: object) -> object:
        report = prune_once(network, example, **options)
        network.train()
        return report

    def other_channels(network: nn.Module, example: object, **options: object) -> object:
        with torch.no_grad():
            network.layer4[1].conv2.weight[-1] += 10
        return prune_once(network, example, **options)

    assert any(
        "halved reference" in problem for problem in zoo_check.problems(zoo_check.check("resnet18", "tiny", little))
    )
    assert any("modes changed" in problem for problem in zoo_check.problems(zoo_check.check("resnet18", "tiny", flags)))
    assert any(
        "relative error" in problem
        for problem in zoo_check.problems(zoo_check.check("resnet18", "tiny", other_channels))
    )
