"""Networks that do unusual things with modes and widths: the smaller one equals the masked one, or the report says so.

Each runs as it is used, in eval mode without gradients and in train mode with them.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.coupling_nets import Net, error_between
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_prune import Report, prune_once
from lightning_prune.coupling import find_coupling
from lightning_prune.coupling.symbols.constants import constants_of, setting_positions, settings_at
from lightning_prune.coupling.train_mode import GradModeWatch, TrainingFlagWatch
from lightning_prune.network.example_input import Example
from lightning_prune.surgery.apply import zero_removed


def data(*shape: int) -> Tensor:
    return torch.randn(*(shape or (6, 5)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def made(run: Callable[..., Any], make: Callable[[], nn.Module] = lambda: nn.Linear(5, 32), without: str = "") -> Net:
    """``run(net, x)`` with two layers that ``make`` makes, and heads that read 32 or 16 of their channels.

    Layers that no pass uses are a reason to look at train mode: leave them out ``without``.
    """
    torch.manual_seed(0)
    layers = {"first": make(), "other": make(), "wide": nn.Linear(32, 3), "narrow": nn.Linear(16, 3)}
    return Net(run, **{name: layer for name, layer in layers.items() if name not in without.split()}).double()


def errors(net: nn.Module, report: Report, masked: nn.Module, x: Tensor) -> list[float]:
    """Of the pruned network against the masked one, in eval and in train mode."""
    zero_removed(masked, report.plan)
    with torch.no_grad():
        evaluated = error_between(net.eval()(x), masked.eval()(x))
    return [evaluated, error_between(net.train()(x).detach(), masked.train()(x).detach())]


def halves(net: Any, x: Tensor) -> Tensor:
    a, b = net.first(x).chunk(2, 1)
    return net.narrow(a if net.training else b)


def later_halves(net: Any, x: Tensor) -> Tensor:
    a, b = net.first(x).relu().chunk(2, 1)
    return net.narrow((a if net.training else b).tanh())


def noisy_halves(net: Any, x: Tensor) -> Tensor:
    a, b = net.first(x).chunk(2, 1)
    return net.narrow(a * a.new_empty(len(x), 1).bernoulli_(1.0) if net.training else b)


def asks_the_global(net: Any, x: Tensor) -> Tensor:
    a, b = net.first(x).chunk(2, 1)
    return net.narrow(a if torch.is_grad_enabled() else b)


def asks_a_tensor(net: Any, x: Tensor) -> Tensor:
    a, b = net.first(x).chunk(2, 1)
    return net.narrow(a if a.requires_grad else b)


def asks_for_a_history(net: Any, x: Tensor) -> Tensor:
    a, b = net.first(x).chunk(2, 1)
    return net.narrow(b if a.grad_fn is None else a)


def asks_for_a_leaf(net: Any, x: Tensor) -> Tensor:
    a, b = net.first(x).chunk(2, 1)
    return net.narrow(b if a.is_leaf else a)


def asks_in_train_mode(net: Any, x: Tensor) -> Tensor:
    a, b = net.first(x).chunk(2, 1)
    return net.narrow(a if net.training and torch.is_grad_enabled() else b)


def asks_for_another_layer(net: Any, x: Tensor) -> Tensor:
    return net.wide(net.other(x) if torch.is_grad_enabled() else net.first(x))


def reads_its_dict(net: Any, x: Tensor) -> Tensor:
    a, b = net.first(x).chunk(2, 1)
    return net.narrow(a if vars(net)["training"] else b)


MODES = {
    "the other half": halves,
    "the other half behind a layer": later_halves,
    "the other half times noise": noisy_halves,
    "torch.is_grad_enabled()": asks_the_global,
    "tensor.requires_grad": asks_a_tensor,
    "tensor.grad_fn": asks_for_a_history,
    "tensor.is_leaf": asks_for_a_leaf,
    "is_grad_enabled() in train mode": asks_in_train_mode,
    "another layer with gradients": asks_for_another_layer,
    "vars(module)": reads_its_dict,
}


@pytest.mark.parametrize("name", MODES)
def test_a_mode_that_decides_which_channels_are_read(name: str) -> None:
    net = made(MODES[name], without="narrow" if "layer with" in name else "other wide")
    masked = copy.deepcopy(net)
    assert find_coupling(net, Example.of(data())).passes.train_differs
    report = prune_once(net, data())
    assert max(errors(net, report, masked, data())) <= 1e-10
    assert report.inexact == {}


def test_an_additional_output_keeps_its_shape() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        a, b = net.first(x), net.other(x)
        return a if net.training else b

    with pytest.raises(ValueError, match=r"'first.weight': 'output of the network', .*'other.weight': 'output of"):
        prune_once(made(run, without="wide narrow"), data())


def test_a_constant_on_a_code_path_for_gradients_is_blamed() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        a, b = net.first(x).chunk(2, 1)
        h = net.other(x).relu()
        if torch.is_grad_enabled():
            a = b.tanh().view(len(x), 16)
        return net.narrow(a) + net.wide(h)

    report = prune_once(made(run), data())
    assert report.frozen["first.weight"].startswith("forward asks for the shape (2, 16) instead of (2, 8)")


def depth(net: Any, x: Tensor) -> Tensor:
    h = net.first(x)
    return net.wide(h + h.tanh() * h.new_empty(len(x), 1).bernoulli_(0.5).div_(0.5) if net.training else h + h.tanh())


def hooked(net: Any, x: Tensor) -> Tensor:
    h = net.first(x)
    if h.requires_grad:
        h.register_hook(lambda grad: grad)
    a, b = h.chunk(2, 1)
    return net.narrow(a * b)


def checkpointed(net: Any, x: Tensor) -> Tensor:
    if torch.is_grad_enabled() and net.training:
        return net.wide(checkpoint(net.first, x, use_reentrant=False).relu_())
    return net.wide(net.first(x).relu_())


def literal(net: Any, x: Tensor) -> Tensor:
    return net.wide(F.dropout(net.first(x) * torch.tensor(0.5), 0.5, net.training))


@pytest.mark.parametrize("run", [depth, hooked, checkpointed, literal])
def test_operations_that_change_no_channels_do_not_count_as_different(run: Callable[..., Tensor]) -> None:
    net = made(run)
    passes = find_coupling(net, Example.of(data())).passes
    assert (passes.train_differs, passes.train_fails) == (False, False)
    assert prune_once(net, data()).widths["first.weight"] in ((32, 16), (16, 8))


def test_noise_for_every_channel_counts_as_different() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.first(x)
        return net.wide(h * h.new_empty(len(x), 32).bernoulli_(1.0) if net.training else h)

    assert find_coupling(made(run), Example.of(data())).passes.train_differs


class Statistics(nn.Module):
    """Puts a new buffer in the place of the old one in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(5, 32), nn.Dropout(), nn.Linear(32, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        h = self.first(x) / self.calls
        if self.training and torch.is_grad_enabled():
            h = h.detach()
        return self.last(self.drop(h) if self.training else h)


def test_a_buffer_that_is_replaced_in_every_pass_does_not_count_as_different() -> None:
    assert not find_coupling(Statistics(), Example.of(data().float())).passes.train_differs


def test_a_mode_is_as_before_in_the_dict_of_a_module() -> None:
    net = nn.Linear(2, 2)
    with TrainingFlagWatch() as mode:
        net.eval()
        assert vars(copy.deepcopy(net))["training"] is False
        assert not mode.was_read
        assert not vars(net)["training"]
        assert mode.was_read
    assert vars(net)["training"] is False


def test_attributes_that_reveal_gradients_are_restored() -> None:
    asks, leaf = torch.is_grad_enabled, torch.ones(2)
    with GradModeWatch() as grads:
        leaf.requires_grad = True
        with torch.no_grad():  # PyTorch's own code asks too
            assert not grads.was_read
            assert not torch.is_grad_enabled()
        assert grads.was_read
        assert leaf.requires_grad
        assert (leaf * 2).grad_fn is not None
    assert torch.is_grad_enabled is asks
    assert not {"requires_grad", "grad_fn", "is_leaf"} & vars(Tensor).keys()
    assert leaf.requires_grad


def convolutions() -> nn.Module:
    return nn.Conv2d(2, 32, 3)


def width(h: Tensor) -> int:
    return h.shape[1]


SETTINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a padding": lambda x, h: F.conv2d(x, x[:2, :, :3, :3], padding=width(h) // 8).mean(),
    "a stride": lambda x, h: F.conv2d(x, x[:2, :, :3, :3], stride=width(h) // 8).mean(),
    "a dilation": lambda x, h: F.conv2d(x, x[:2, :, :3, :3], dilation=width(h) // 8).mean(),
    "a padding that float made": lambda x, h: F.conv2d(x, x[:2, :, :3, :3], padding=int(width(h) ** 0.5)).mean(),
    "a padding of a transposed convolution": lambda x, h: F.conv_transpose2d(
        x, x[:2, :, :3, :3], stride=6, output_padding=width(h) // 8
    ).sum(),
    "epsilon of layer norm": lambda x, h: F.layer_norm(x, x.shape[1:], eps=1 / width(h)).square().mean(),
    "epsilon of group norm": lambda x, h: F.group_norm(x, 2, eps=1 / width(h)).square().mean(),
    "epsilon of batch norm": lambda x, h: F.batch_norm(x, x.new_ones(2), x.new_ones(2), eps=1 / width(h)).mean(),
    "a window": lambda x, h: F.max_pool2d(x, width(h) // 8).mean(),
    "an adaptive size": lambda x, h: F.adaptive_max_pool2d(x, width(h) // 8).mean(),
    "a size to resize to": lambda x, h: F.interpolate(x, width(h)).square().sum(),
    "a border": lambda x, h: F.pad(x, (0, width(h) // 8)).mean(),
    "a place to cut the input at": lambda x, h: x[:, :, : width(h) // 8].mean(),
    "a position in the input": lambda x, h: x[:, :, width(h) // 8].mean(),
}


FOLLOWS = "forward calls an operation with numbers that depend on the width, such as its padding or epsilon"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_width_that_settings_follow_stays_and_no_other(name: str) -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.first(x)
        return net.wide(h.mean((2, 3))) + net.narrow(net.other(x).mean((2, 3))) * SETTINGS[name](x, h)

    net, x = made(run, convolutions), data(4, 2, 12, 12)
    net.other = nn.Conv2d(2, 16, 3).double()
    masked = copy.deepcopy(net)
    report = prune_once(net, x)
    assert max(errors(net, report, masked, x)) <= 1e-10
    assert report.widths == {"other.weight": (16, 8)}
    assert report.frozen["first.weight"] == FOLLOWS


def test_settings_on_a_real_pass_are_inexact() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.first(x)
        found = SETTINGS["a padding"](x, h) if float(x.abs().sum()) > 0 else 0
        return net.wide(h.mean((2, 3))) + found

    net, x = made(run, convolutions), data(4, 2, 12, 12)
    report = prune_once(net, x)
    assert set(report.inexact) == set(report.widths) == {"first.weight"}


def test_positions_that_depend_on_values_are_not_compared() -> None:
    net = made(lambda net, x: net.wide(net.first(x)) + x[: int((x.sum(1) > 0).sum())].mean())
    coupling = find_coupling(net, Example.of(data()))
    assert not coupling.on_meta
    assert coupling.passes.operations[-1] == (None,)


def test_constant_settings_change_nothing() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        h = F.layer_norm(F.pad(net.first(x), (1, 2)), (10, 13), eps=1e-3)[:, :, 1 : x.shape[2] // 2, 3]
        return net.wide(F.conv1d(h, net.other.weight, padding=x.shape[1], groups=width(h)).mean(2))

    net, x = made(run, convolutions), data(4, 2, 12, 12)
    net.other = nn.Conv1d(32, 32, 2, groups=32, bias=False).double()
    masked = copy.deepcopy(net)
    report = prune_once(net, x)
    assert max(errors(net, report, masked, x)) <= 1e-10
    assert (report.widths, report.inexact) == ({"first.weight": (32, 16)}, {})


aten = torch.ops.aten


def test_which_arguments_are_settings() -> None:
    one = torch.ones(1)
    calls = {
        aten.convolution.default: ((one, one, None, [1, 2], [3], [4], False, [5], 6), ([1, 2], [3], [4], [5])),
        aten.native_layer_norm.default: ((one, [8], None, None, 1e-5), (1e-5,)),
        aten.native_group_norm.default: ((one, None, None, 1, 2, 3, 4, 1e-6), (1e-6,)),
        aten.slice.Tensor: ((one, 1, 0, 4), (1, 0, 4)),
    }
    for func, (args, settings) in calls.items():
        assert settings_at(setting_positions(func), args) == settings
    for func in (aten.view.default, aten.as_strided.default, aten.mul.Tensor, aten.mm.default, aten.expand.default):
        assert setting_positions(func) == ()


WHETHER: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "a factor": lambda net, x, h: net.wide(h * (width(h) > 20)),
    "a factor of what another width makes": lambda net, x, h: net.wide(h) * (width(h) > 20),
    "a factor of the input": lambda net, x, h: net.wide(h) + x[:, :3] * (width(h) > 20),
    "added": lambda net, x, h: net.wide(h + (width(h) > 20)),
    "a tensor of it": lambda net, x, h: net.wide(h * torch.tensor(width(h) > 20)),
    "a tensor that decides": lambda net, x, h: net.wide(torch.where(torch.tensor(width(h) > 20), h, h.tanh())),
    "a list of them": lambda net, x, h: net.wide(h) * torch.tensor([width(h) > 20, True, True], device=x.device),
    "what a tensor is filled with": lambda net, x, h: net.wide(h) * torch.full_like(x[:, :3], width(h) > 20),
}


@pytest.mark.parametrize("name", WHETHER)
def test_whether_a_width_is_large_enough_to_compute_with(name: str) -> None:
    net = made(lambda net, x: WHETHER[name](net, x, net.first(x) + 0.1))
    report = prune_once(net, data())
    assert set(report.widths) == {"first.weight"}
    assert report.inexact == {"first.weight": "forward computes with a number that depends on the width"}


@pytest.mark.parametrize(
    ("func", "args", "numbers"),
    [
        (aten.mul.Tensor, (torch.ones(3), True), (1.0,)),
        (aten.add.Tensor, (torch.ones(3), False), (0.0,)),
        (aten.sum.dim_IntList, (torch.ones(3), [0], True), ()),
        (aten.mul.Tensor, (torch.ones(3, device="meta"), torch.tensor(True)), (1.0,)),
        (aten.mul.Tensor, (torch.ones(3), torch.tensor(True)), ()),
    ],
)
def test_which_numbers_are_recorded(func: Any, args: Any, numbers: Any) -> None:
    assert constants_of(func, args, {}, args[0].is_meta) == numbers
