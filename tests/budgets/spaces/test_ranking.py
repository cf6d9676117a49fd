from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lightning_prune.budgets.spaces.ranking import group_kind, isomorphism_classes, rank_steps
from lightning_prune.coupling import Bundle, Coupling, find_coupling
from lightning_prune.network.example_input import Example


def test_with_one_class_the_order_is_a_sort() -> None:
    scores = [torch.tensor([0.1, 0.4, 0.4]), torch.tensor([0.2, 0.4]), torch.tensor([])]
    owners, gone = rank_steps(scores, [1, 5, 7], ["", "", ""], {"": 50}, {"": 9})
    assert owners.tolist() == [0, 1, 0, 0, 1]  # ties by candidate
    assert gone.tolist() == [1, 6, 7, 8, 13]


def test_classes_take_turns_by_the_share_that_is_gone() -> None:
    scores = [torch.arange(4.0), 100 + torch.arange(2.0), 50 + torch.arange(2.0)]
    owners, gone = rank_steps(scores, [1, 3, 3], ["a", "b", "b"], {"a": 8, "b": 20}, {"a": 2, "b": 0})
    # a: 3/8 4/8 5/8 6/8; b: 3/20 6/20 9/20 12/20, the third candidate first
    assert owners.tolist() == [2, 2, 0, 1, 0, 1, 0, 0]
    assert gone.tolist() == [3, 6, 7, 10, 11, 14, 15, 16]


def classes_of(net: nn.Module, example: Tensor, bundles: tuple[Bundle, ...] = ()) -> dict[str, str]:
    coupling = replace(find_coupling(net, Example.of(example)), bundles=bundles)
    return isomorphism_classes(net, coupling, list(coupling.groups))


class Residual(nn.Module):
    def __init__(self, width: int, inner: int, kernel: int, flipped: bool = False) -> None:
        super().__init__()
        parts = {
            "one": nn.Conv2d(width, inner, kernel, padding="same"),
            "norm": nn.BatchNorm2d(inner),
            "two": nn.Conv2d(inner, width, 1),
        }
        for name in reversed(parts) if flipped else parts:
            self.add_module(name, parts[name])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.norm(self.one(x)).relu())


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), Residual(8, 4, 3), nn.Conv2d(8, 6, 1), Residual(6, 9, 5, flipped=True),
        nn.Conv2d(6, 10, 1), nn.BatchNorm2d(10), nn.Conv2d(10, 7, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(7, 2),
    )  # fmt: skip


def test_kinds_by_hand() -> None:
    net = conv_net()
    coupling = find_coupling(net, Example.of(torch.zeros(2, 3, 8, 8)))
    conv, norm = "torch.nn.modules.conv.Conv2d", "torch.nn.modules.batchnorm.BatchNorm2d"
    made = [(conv, "bias", 0, False, 1), (conv, "weight", 0, False, 1), (conv, "weight", 1, True, 1)]
    norms = [(norm, leaf, 0, False, 1) for leaf in ("bias", "running_mean", "running_var", "weight")]
    assert group_kind(net, coupling.groups["1.one.weight"]) == tuple(sorted(norms + made))


def test_widths_kernels_and_order_of_registration_make_no_kind() -> None:
    classes = classes_of(conv_net(), torch.zeros(2, 3, 8, 8))
    inner = [name for name, label in classes.items() if label == "1.one.weight"]
    assert len(inner) == 3  # both hidden layers, and layers 4 to 6: a convolution, a norm, a convolution that reads
    assert classes["4.weight"] == "1.one.weight"
    assert classes["6.weight"] == "6.weight"  # read by a linear layer
    streams = {label for name, label in classes.items() if label not in ("1.one.weight", "6.weight")}
    assert streams == {"0.weight"}  # two streams, one block each
    assert len(classes) == 6


def test_what_a_unit_owns_makes_a_kind() -> None:
    """Behind a flatten a linear layer reads 4 columns for each channel."""
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(16, 2))
    pooled = nn.Sequential(nn.Conv2d(1, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    kinds = [
        group_kind(each, find_coupling(each, Example.of(torch.zeros(2, 1, 2, 2))).groups["0.weight"])
        for each in (net, pooled)
    ]
    assert kinds[0] != kinds[1]
    assert [sorted(entry[-1] for entry in kind) for kind in kinds] == [[1, 1, 4], [1, 1, 1]]


def test_a_bundle_is_one_structure() -> None:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 4), (4, 2), (2, 8), (8, 4), (4, 6), (6, 3), (3, 2)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    bundles = tuple(Bundle(quantum, "") for quantum in ({"0.weight": 2, "2.weight": 1}, {"4.weight": 4, "6.weight": 2}))
    classes = classes_of(nn.Sequential(*layers[:-1]), torch.zeros(1, 3), bundles)
    assert classes == {
        **dict.fromkeys(("0.weight", "2.weight", "4.weight", "6.weight"), "0.weight"),
        **dict.fromkeys(("8.weight", "10.weight"), "8.weight"),
    }
    uneven = (bundles[0], Bundle({"4.weight": 2, "6.weight": 2}, ""))
    assert classes_of(nn.Sequential(*layers[:-1]), torch.zeros(1, 3), uneven)["4.weight"] == "4.weight"


def test_the_module_itself_may_hold_a_parameter() -> None:
    net = nn.Linear(3, 4)
    coupling = Coupling({}, {}, {}, {}, (), False, True)
    assert isomorphism_classes(net, coupling, []) == {}
    outer = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    group = find_coupling(outer, Example.of(torch.zeros(1, 3))).groups["0.weight"]
    member = replace(group.members[0], tensor="weight")
    assert group_kind(net, replace(group, members=(member,))) == (
        ("torch.nn.modules.linear.Linear", "weight", 0, False, 1),
    )


@pytest.mark.parametrize("reads", [True, False])
def test_reading_is_not_making(reads: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    group = find_coupling(net, Example.of(torch.zeros(1, 3))).groups["0.weight"]
    flipped = replace(group, members=tuple(replace(m, reads=m.reads if reads else not m.reads) for m in group.members))
    assert (group_kind(net, flipped) == group_kind(net, group)) is reads
