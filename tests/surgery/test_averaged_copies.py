"""Averaged copies: which part of a network they follow, and that they stay averages of it."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_prune import prune_once
from lightning_prune.budgets import Params
from lightning_prune.checkpoint.manifest import track_plan
from lightning_prune.coupling import find_coupling
from lightning_prune.network.averages import copies_held_by, source_of
from lightning_prune.network.example_input import Example
from lightning_prune.surgery.apply import apply_plan
from lightning_prune.surgery.averaged_copies import apply_to_copies, plan_for_part, with_averages
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.removal import plan_removal

KEEP = torch.tensor([0, 2])


def perceptron(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))


class Holder(nn.Module):
    """A network with twin parts, one of which is averaged."""

    def __init__(self, averaged: str = "left") -> None:
        super().__init__()
        self.left, self.right = perceptron(), perceptron()
        self.average = AveragedModel(getattr(self, averaged), multi_avg_fn=get_ema_multi_avg_fn(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


def hidden(path: str, index: Tensor = KEEP) -> dict[str, dict[int, Tensor]]:
    """A plan's entries for the hidden units of a perceptron at ``path``."""
    return {f"{path}0.weight": {0: index}, f"{path}0.bias": {0: index}, f"{path}2.weight": {1: index}}


def moved(module: nn.Module, seed: int) -> None:
    """Stands for a few steps of training."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("part", ["left", "right"])
def test_an_average_follows_the_twin_that_it_is_of(part: str) -> None:
    module = Holder(part)
    for seed in range(3):
        moved(getattr(module, part), seed)
        module.average.update_parameters(getattr(module, part))
    plan = with_averages(Plan({**hidden("left."), **hidden("right.", torch.tensor([1, 2, 3]))}), module)
    index = {"left": [0, 2], "right": [1, 2, 3]}[part]
    assert {n: {d: i.tolist() for d, i in dims.items()} for n, dims in plan.keep.items() if "average" in n} == {
        "average.module.0.weight": {0: index},
        "average.module.0.bias": {0: index},
        "average.module.2.weight": {1: index},
    }
    before = module.average.module[0].weight.clone()
    apply_plan(module, plan)
    assert torch.equal(module.average.module[0].weight, before[index])
    assert module.average.module[0].out_features == len(index)
    module.average.update_parameters(getattr(module, part))


def test_the_average_after_surgery_is_that_of_small_networks() -> None:
    """The reference: the average of the same weights, cut by hand before they are averaged."""
    module = Holder()
    reference = AveragedModel(perceptron(2), multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for seed in range(6):
        moved(module.left, seed)
        module.average.update_parameters(module.left)
        small = perceptron(2)
        rows = slice(None) if module.left[0].out_features == 2 else [0, 2]
        small[0].weight.data, small[0].bias.data = module.left[0].weight.data[rows], module.left[0].bias.data[rows]
        small[2].weight.data, small[2].bias.data = module.left[2].weight.data[:, rows], module.left[2].bias.data
        reference.update_parameters(small)
        if seed == 2:
            apply_plan(module, with_averages(Plan(hidden("left.")), module))
    for found, expected in zip(module.average.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-7)
    x = torch.randn(5, 3)
    assert torch.allclose(module.average(x), reference(x), atol=1e-6)


def test_everything_that_a_plan_says_is_said_of_the_average() -> None:
    module = Holder()
    mask = torch.tensor([[True, False, True, True], [False, True, True, True]])
    plan = Plan(
        hidden("left."),
        {"left.2.weight": mask},
        {"left": {"width": 2}, "left.0": {"out_features": 2}, "right": {"width": 9}},
        {"left.2.weight": {1: torch.ones(2)}, "right.2.weight": {1: torch.ones(4)}},
    )
    found = with_averages(plan, module)
    assert found.masks.keys() == {"left.2.weight", "average.module.2.weight"}
    assert found.masks["average.module.2.weight"] is mask
    assert found.attributes == {
        **plan.attributes,
        "average.module": {"width": 2},
        "average.module.0": {"out_features": 2},
    }
    assert found.scales.keys() == {"left.2.weight", "right.2.weight", "average.module.2.weight"}
    assert "average.module.0.weight" not in plan.keep  # the one that was given stays as it is


def test_what_a_plan_says_of_the_average_itself_is_replaced() -> None:
    """An average that `forward` uses in eval mode looks like a network of its own."""
    module = Holder()
    own = hidden("average.module.", torch.tensor([3]))
    assert with_averages(Plan(own), module).keep == {}
    found = with_averages(Plan({**own, "left.0.bias": {0: KEEP}}), module)
    assert found.keep.keys() == {"left.0.bias", "average.module.0.bias"}


def test_shared_tensors_and_modules_go_by_their_first_names() -> None:
    module = nn.Module()
    module.encoder, module.decoder = nn.Linear(3, 4, bias=False), nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    module.decoder[0].weight = module.encoder.weight
    module.again = module.decoder
    plan = Plan(
        {"encoder.weight": {0: KEEP}, "decoder.0.bias": {0: KEEP}}, attributes={"decoder.0": {"out_features": 2}}
    )
    found = plan_for_part(plan, module, "again")
    assert found.keep == {"0.weight": {0: KEEP}, "0.bias": {0: KEEP}}
    assert found.attributes == {"0": {"out_features": 2}}
    assert plan_for_part(plan, module, "") == plan


def test_an_average_of_the_whole_network() -> None:
    """Made after another average, of which it has a copy as well."""
    module = Holder()
    module.every = AveragedModel(module)
    assert source_of(module.every.module, module) == ""
    plan = with_averages(Plan(hidden("left.")), module)
    places = ("left.", "average.module.", "every.module.left.", "every.module.average.module.")
    assert plan.keep.keys() == {name for place in places for name in hidden(place)}
    apply_plan(module, plan)
    x = torch.randn(2, 3)
    assert torch.equal(module.every(x), module(x))


def test_an_average_of_nothing_in_the_network_stays_with_a_warning() -> None:
    module = Holder()
    module.average = AveragedModel(perceptron(5))
    with pytest.warns(UserWarning, match="Sequential at 'average' is not a copy of Holder"):
        plan = with_averages(Plan(hidden("left.")), module)
    assert plan.keep.keys() == hidden("left.").keys()


def test_another_class_of_the_same_shapes_is_no_source() -> None:
    module = nn.ModuleDict({"other": nn.Conv2d(3, 4, 1), "own": nn.ConvTranspose2d(4, 3, 1)})
    copied = copy.deepcopy(module["own"])
    module["other"].weight.data, module["other"].bias.data = copied.weight.data, copied.bias.data
    moved(module["own"], 0)
    assert source_of(copied, module) == "own"
    assert source_of(nn.Linear(3, 4), module) is None


def test_copies_outside_the_network() -> None:
    module = Holder()
    whole, part = AveragedModel(module), AveragedModel(module.left)
    plain, other = copy.deepcopy(module), perceptron()
    holders = [
        SimpleNamespace(a=whole, b=[part, other], c=3),
        SimpleNamespace(d={"x": plain}, e=whole, f=module, g=module.average),
        module,
    ]
    assert copies_held_by(holders, module) == [whole.module, plain]
    plan = with_averages(Plan(hidden("left.")), module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_to_copies(holders, plan, module, track_plan)
    assert [m[0].out_features for m in (module.left, other, module.average.module)] == [4, 4, 4]
    for copied in (whole.module.left, whole.module.average.module, part.module, plain.left):
        assert [copied[0].out_features, copied[2].in_features] == [2, 2]
    apply_plan(module, plan)
    part.update_parameters(module.left)
    whole.update_parameters(module)


def test_masked_weights_become_zero_in_copies_outside() -> None:
    module, average = perceptron(), AveragedModel(perceptron())
    mask = torch.rand(4, 3) > 0.5
    apply_to_copies([SimpleNamespace(average=average)], Plan(masks={"0.weight": mask}), module, track_plan)
    assert torch.equal(average.module[0].weight != 0, mask)
    assert int((average.module[2].weight == 0).sum()) == 0


def test_a_real_plan() -> None:
    """Residual connections and batch norm, planned by the analysis of a network that holds its average."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.inner, self.outer = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(x)).relu()
            return self.head((x + self.outer(self.inner(x).relu())).mean((2, 3)))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Residual()
            self.average = AveragedModel(self.net, use_buffers=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    module = Both()
    coupling = find_coupling(module, Example.of(torch.randn(2, 3, 4, 4)))
    removed = {name: torch.arange(group.size) < 3 for name, group in coupling.groups.items()}
    plan = with_averages(plan_removal(removed, coupling), module)
    apply_plan(module, plan)
    module.average.update_parameters(module.net)
    x = torch.randn(2, 3, 4, 4)
    assert module.average.module.norm.num_features == 5
    assert torch.equal(module.average.eval()(x), module.net.eval()(x))


def test_one_event_without_a_trainer() -> None:
    module = Holder()
    dense = sum(p.numel() for p in module.parameters())
    report = prune_once(module, torch.zeros(1, 3), budget=Params(keep=0.7))
    assert module.average.module[0].out_features == module.left[0].out_features < 4
    module.average.update_parameters(module.left)
    assert (report.before.params, report.after.params) == (dense, sum(p.numel() for p in module.parameters()))
    assert report.after.params <= 0.7 * dense
