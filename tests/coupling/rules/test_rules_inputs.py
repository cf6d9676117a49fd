"""Example inputs: how batches are recognized, and that the operations of torchvision's networks have rules."""

from typing import Any

import pytest
import torch
from helpers.coupling_nets import image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models

from lightning_prune.coupling.rules import rule_of
from lightning_prune.network.example_input import Example, run_on_copy
from lightning_prune.network.tensors import tensors_in


def shapes(example: Example) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors_in([example.args, example.kwargs])]


@pytest.mark.parametrize(
    ("inputs", "batch", "found"),
    [
        (image(5, 3, 8, 8), 2, [(2, 3, 8, 8)]),
        (image(1, 3, 8, 8), 2, [(2, 3, 8, 8)]),
        ((image(4, 3), image(4, 5)), 2, [(2, 3), (2, 5)]),
        ((image(4, 3), image(5, 4)), 1, [(4, 3), (5, 4)]),
        ({"x": image(1, 3), "flag": True}, 2, [(2, 3)]),
        ({"x": {"y": [image(3, 2, 2, 2), image(3, 4, 4, 4)]}}, 2, [(2, 2, 2, 2), (2, 4, 4, 4)]),
        ([image(3, 8, 6)], 1, [(3, 8, 6)]),
        ([image(3, 8, 6), image(3, 4, 4), image(3, 5, 5)], 2, [(3, 8, 6), (3, 4, 4)]),
        (([image(3, 8, 6)], [{"boxes": image(7, 4), "is": torch.ones(7)}]), 1, [(3, 8, 6), (7, 4), (7,)]),
        (([image(3, 8, 6)] * 3, [{"boxes": image(7, 4)}] * 3), 2, [(3, 8, 6)] * 2 + [(7, 4)] * 2),
        ({"images": [image(3, 8, 6)] * 3}, 2, [(3, 8, 6)] * 2),
        ([image(2, 4, 8, 8), image(2, 8, 4, 4)], 2, [(2, 4, 8, 8), (2, 8, 4, 4)]),
        ([image(4, 3), image(4, 5)], 2, [(2, 3), (2, 5)]),
        (torch.zeros(6), 1, [(6,)]),
        ("text", 1, []),
    ],
)  # fmt: skip
def test_a_batch_is_a_list_of_images_or_the_leading_dimension(inputs: Any, batch: int, found: list[Any]) -> None:
    example = Example.of(inputs)
    assert (example.batch, shapes(example)) == (batch, found)


def test_lists_repeat_their_entries() -> None:
    example = Example.of(([image(3, 8, 6), image(3, 4, 4)], {"id": 3})).repeated(5)
    assert example.batch == 5
    assert shapes(example) == [(3, 8, 6), (3, 4, 4), (3, 8, 6), (3, 4, 4), (3, 8, 6)]
    assert example.args[1] == {"id": 3}
    assert example.to("meta").repeated(1).args[0][0].is_meta
    assert len(Example.of([image(3, 8, 6)]).repeated(3).args[0]) == 3


def test_which_examples_passes_with_values_use() -> None:
    assert Example.of(image(2, 3)).whole is None
    assert Example.of(image(1, 3)).whole is None
    for given, kept in ((5, 5), (64, 64), (70, 64)):
        whole = Example.of(image(given, 3)).whole
        assert whole is not None
        assert (whole.batch, len(whole.args[0])) == (kept, kept)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8)])
def test_an_image_without_a_batch_is_kept_where_the_network_requires_it(shape: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Conv2d(shape[0], 4, 3), nn.Flatten(0), nn.Linear(144, 2))
    example = Example.of(image(*shape), net)
    assert (example.batch, shapes(example)) == (1, [shape])
    assert Example.of(image(5, shape[0], 8, 8), nn.Conv2d(shape[0], 4, 3)).batch == 2
    assert example.repeated(64) is example


def test_a_list_that_is_no_batch_of_images_is_recognized_by_a_trial_pass() -> None:
    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 2), nn.Linear(6, 2)

        def forward(self, levels: list[Tensor]) -> Tensor:
            small, large = levels
            return self.a(small).mean(1) + self.b(large).mean(1)

    example = Example.of([image(5, 7, 4), image(5, 9, 6)], Levels())
    assert (example.batch, shapes(example)) == (2, [(2, 7, 4), (2, 9, 6)])


class Unknown(TorchDispatchMode):
    """Notes the operations without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if rule_of(func) is None:
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


DETECTION = ("fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large")
SLOW = ("maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn")
TARGET = {
    "boxes": torch.tensor([[5.0, 5.0, 60.0, 70.0]]), "labels": torch.tensor([1]), "keypoints": torch.ones(1, 17, 3),
    "masks": torch.ones(1, 96, 96, dtype=torch.uint8),
}  # fmt: skip


@pytest.mark.parametrize("name", [*DETECTION, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_operation_of_detection_networks_has_a_rule(name: str) -> None:
    net = models.get_model(name, weights=None, weights_backbone=None)
    with torch.no_grad(), Unknown() as unknown:
        net.eval()([image(3, 96, 96), image(3, 96, 80)])
        net.train()([image(3, 96, 96)] * 2, [TARGET] * 2)
    assert unknown.found == set()


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("lraspp_mobilenet_v3_large", image(2, 3, 64, 64)),
        ("deeplabv3_resnet50", image(2, 3, 64, 64)),
        ("swin_v2_t", image(2, 3, 64, 64)),
        ("maxvit_t", image(2, 3, 224, 224)),
        ("raft_large", (image(1, 3, 128, 128), image(1, 3, 128, 128))),
        ("mvit_v2_s", image(1, 3, 16, 224, 224)),
        ("shufflenet_v2_x0_5", image(2, 3, 64, 64)),
        ("googlenet", image(2, 3, 96, 96)),
    ],
)
def test_every_operation_of_other_networks_has_a_rule(name: str, inputs: Any) -> None:
    options: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
    if name.startswith(("lraspp", "deeplab")):
        options = {"weights_backbone": None}
    with torch.device("meta"):
        net = models.get_model(name, weights=None, **options)

    def run(copy: nn.Module, example: Example) -> set[str]:
        with Unknown() as unknown:
            example.run(copy.eval())
            example.run(copy.train())
        return unknown.found

    assert run_on_copy(net, Example.of(inputs), run, on_meta=True) == set()
