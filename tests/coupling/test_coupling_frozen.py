"""Channels that cannot be removed are frozen with a reason."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.coupling_nets import Net, conv, image, pooled, randomise, removal_error
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune.coupling import find_coupling
from lightning_prune.functional import prune_once
from lightning_prune.network.example_input import Example


def head_net(run: Callable[[Any, Tensor], Tensor], width: int = 8, read: int = 8, **layers: nn.Module) -> Net:
    return Net(lambda net, x: net.head(run(net, net.a(x))), a=conv(3, width), head=nn.Linear(read, 3), **layers)


def merged(net: Any, x: Tensor) -> Tensor:
    x = pooled(x)
    return (x.unsqueeze(1) * x.unsqueeze(2)).flatten(1)


def overwritten(net: Any, x: Tensor) -> Tensor:
    x[:, 0] = 0.0
    return pooled(x)


def written(net: Any, x: Tensor) -> Tensor:
    y = torch.zeros(8, 1, 1, device=x.device)
    y[3] = 1.0
    return pooled(x + y)


FROZEN = {
    "roll": (head_net(lambda net, x: pooled(x.roll(1, 1))), "forward calls roll over the channels"),
    "roll of the flattened tensor": (head_net(lambda net, x: pooled(x.roll(1))), "roll over the channels"),
    "sort": (head_net(lambda net, x: pooled(x).sort(1).values), "sort over the channels"),
    "matrix exponential": (head_net(lambda net, x: pooled(torch.matrix_exp(x))), "matrix_exp over the channels"),
    "index": (head_net(lambda net, x: pooled(x[:, [1, 0, 2, 3, 4, 5, 6, 7]])), "forward picks entries of it by number"),
    "slice": (head_net(lambda net, x: pooled(x[:, 2:6]), read=4), "slices 4 of 8 channels, written as a number"),
    "slice with a step": (
        head_net(lambda net, x: pooled(x[:, 1::2][:, ::3]), read=2),
        "slices 2 of 4 channels with a step of 3, written as a number",
    ),
    "select": (head_net(lambda net, x: x[:, 3].flatten(1), read=64), "picks single channels by number"),
    "unbind": (head_net(lambda net, x: x.unbind(1)[0].flatten(1), read=64), "picks single channels by number"),
    "assignment": (head_net(overwritten), "picks single channels by number"),
    "uneven split": (
        head_net(lambda net, x: pooled(x.split((2, 6), 1)[1]), read=6),
        r"splits into \(2, 6\), written as numbers",
    ),
    "crop": (head_net(lambda net, x: pooled(F.pad(x, (0, 0, 0, 0, -1, 0))), read=7), "forward crops the channels"),
    "outer product": (
        head_net(merged, read=64),
        r"forward reshapes \(2, 8, 8\) to \(2, 64\), which merges it with other channels",
    ),
    "fixed tensor": (
        head_net(lambda net, x: pooled(x + torch.arange(8, device=x.device).view(8, 1, 1))),
        r"forward adds it to a tensor of shape \(8, 1, 1\), whose size 8 cannot shrink",
    ),
    "constant with something written": (
        head_net(written),
        r"forward adds it to a tensor of shape \(8, 1, 1\), whose size 8 cannot shrink",
    ),
    "other strides": (head_net(lambda net, x: x.as_strided((2, 4, 8, 8), x.stride()).mean((2, 3)), read=4), "strides"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_channels_that_cannot_be_removed_are_frozen_with_a_reason(name: str) -> None:
    net, reason = FROZEN[name]
    coupling = find_coupling(net, Example.of(image()))
    assert re.search(reason, coupling.frozen["a.weight"])
    assert not any(m.tensor == "a.weight" for group in coupling.groups.values() for m in group.members)


def inside(run: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> Net:
    """A network in which ``run`` is the forward of a module named 'block'."""
    block = Net(run, **layers)
    return Net(lambda net, x: net.head(pooled(net.block(net.a(x)))), a=conv(3, 8), block=block, head=nn.Linear(8, 3))


CURE = "yet; please report it, or leave its layers out with Scope(exclude=[...])"
SENTENCES = {
    "a.weight": {
        "'block': forward multiplies it by a tensor of shape (8, 1, 1), whose size 8 cannot shrink": inside(
            lambda net, x: x * torch.arange(8, device=x.device).view(8, 1, 1)
        ),
        "'block': forward adds it to a tensor of shape (2, 8, 8, 8), of which only some channels come from a layer": (
            inside(lambda net, x: x + F.pad(x[:, :4], (0, 0, 0, 0, 0, 4)))
        ),
        "'block': forward slices 3 of 8 channels with a step of 3, written as a number": inside(
            lambda net, x: torch.cat([x[:, ::3], x[:, :5]], 1)
        ),
        "'block': forward picks entries of it by number": inside(lambda net, x: x[:, torch.arange(8).flip(0)]),
        "'block': forward uses the positions that argmax finds among them": inside(
            lambda net, x: x * x.argmax(1, keepdim=True)
        ),
        f"'block': there is no rule for torch.renorm {CURE}": inside(lambda net, x: torch.renorm(x, 2, 1, 1.0)),
        f"'block': there is no rule for torch.Tensor.renorm {CURE}": inside(lambda net, x: x.renorm(2, 1, 1.0)),
        "'block.norm': forward needs its 8 groups, which have one channel each": inside(
            lambda net, x: net.norm(x), norm=nn.GroupNorm(8, 8, affine=False)
        ),
    },
    "b.weight": {
        "'b': forward convolves a tensor of shape (2, 3, 8, 8), whose size 3 cannot shrink": Net(
            lambda net, x: net.c(net.a(net.b(x))), b=conv(3, 3, groups=3), a=conv(3, 4), c=conv(4, 2)
        ),
        "forward adds it to a tensor of shape (2, 3, 8, 8), whose size 3 cannot shrink": Net(
            lambda net, x: net.c(x + net.b(net.a(x))), a=conv(3, 6), b=conv(6, 3), c=conv(3, 2)
        ),
    },
    "0.weight": {
        "'0': forward normalizes a tensor of shape (2, 3, 8, 8), whose size 3 cannot shrink": nn.Sequential(
            nn.BatchNorm2d(3), conv(3, 4), conv(4, 2)
        ),
        "'0': forward convolves a tensor of shape (2, 3, 8, 8), whose channels come from no layer": nn.Sequential(
            conv(3, 6, groups=3), conv(6, 4), conv(4, 2)
        ),
    },
}  # tensor -> reason -> network


@pytest.mark.parametrize(("name", "reason"), [(name, reason) for name, own in SENTENCES.items() for reason in own])
def test_reasons_name_the_module_and_what_its_forward_does(name: str, reason: str) -> None:
    assert find_coupling(SENTENCES[name][reason], Example.of(image())).frozen[name] == reason


def test_inexact_channels_have_the_name_of_the_operation_that_users_know() -> None:
    (group,) = find_coupling(inside(lambda net, x: x.softmax(1)), Example.of(image())).groups.values()
    assert group.inexact == "'block': forward calls softmax over the channels: masked ones take part in it"


def test_a_tensor_is_not_frozen_because_of_a_dimension_that_is_no_channel() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.ones(1, 7, 6))
            self.embed, self.head = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x) + self.positions)

    assert find_coupling(Positions(), Example.of(image(2, 7, 5))).frozen == {"head.weight": "output of the network"}
    net = nn.Sequential(conv(3, 8), nn.LayerNorm([8, 8, 8]), conv(8, 2))
    assert find_coupling(net, Example.of(image())).frozen == {"2.weight": "output of the network"}


def test_what_makes_the_channels_is_named_although_what_reads_them_comes_first() -> None:
    net = Net(lambda net, x: net.head(pooled(net.a(x).roll(1, 1))), head=nn.Linear(8, 3), a=conv(3, 8))
    assert find_coupling(net, Example.of(image())).frozen["a.weight"] == "forward calls roll over the channels"


def test_a_part_of_the_channels_may_be_frozen() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        kept, rolled = net.both(x).split(net.sizes, 1)
        return net.a(kept) + net.b(rolled.roll(1, 1))

    net = Net(run, a=conv(8, 2), both=conv(3, 12, bias=False), b=conv(4, 2))
    net.sizes = [8, 4]
    coupling = find_coupling(net, Example.of(image()))
    assert coupling.frozen["both.weight"] == "a part of its channels: forward calls roll over the channels"
    assert {name: group.size for name, group in coupling.groups.items()} == {"a.weight": 8}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_channels_read_by_a_torchscript_module_are_frozen() -> None:
    scripted = torch.jit.trace(conv(8, 8), image(2, 8, 8, 8))
    net = nn.Sequential(conv(3, 8), scripted, conv(8, 6), conv(6, 2))
    report = prune_once(net, image())
    assert report.frozen["0.weight"].startswith("'1' is a TorchScript module, whose shapes cannot change: prune the")
    assert report.widths == {"2.weight": (6, 3)}
    assert net(image()).shape == (2, 2, 8, 8)


def test_a_triangular_weight_is_frozen() -> None:
    net = head_net(lambda net, x: F.linear(pooled(x), net.t.weight.tril()), t=nn.Linear(8, 8, bias=False))
    assert find_coupling(net, Example.of(image())).frozen["t.weight"] == "forward calls tril over the channels"
    weight, rows, columns = torch.ones(4, 4), torch.tensor([0, 1]), torch.tensor([2, 3])
    assert not torch.equal(weight[rows][:, columns].tril(), weight.tril()[rows][:, columns])


def test_the_only_channel_of_a_group_is_frozen() -> None:
    net = nn.Sequential(conv(3, 8), conv(8, 4, groups=4, bias=False), conv(4, 2))
    coupling = find_coupling(net, Example.of(image()))
    assert coupling.frozen["1.weight"] == "'1': forward needs its 4 groups, which have one channel each"
    assert coupling.groups["0.weight"].size == 2  # one channel of every group at a time
    assert removal_error(net, image()) <= 1e-5


def test_input_and_output_are_frozen_without_being_named() -> None:
    coupling = find_coupling(nn.Sequential(conv(3, 6), conv(6, 5)), Example.of(image()))
    assert list(coupling.groups) == ["0.weight"]
    assert coupling.frozen == {"1.weight": "output of the network"}


def test_layers_apart_from_an_unknown_operation_are_removable_and_exact() -> None:
    net = Net(
        lambda net, x: net.head(pooled(net.b(net.a(x).cumprod(1)[:, :8]))),
        a=conv(3, 32), b=conv(8, 6), head=nn.Linear(6, 3),
    )  # fmt: skip
    assert removal_error(net, image()) <= 1e-5
    assert (net.a.out_channels, net.b.in_channels) == (32, 8)
    assert net.b.out_channels < 6


def test_parameters_that_no_pass_uses_are_frozen() -> None:
    net = Net(lambda net, x: net.b(net.a(x)), a=conv(3, 6), b=conv(6, 2), spare=conv(6, 4))
    coupling = find_coupling(net, Example.of(image()))
    assert list(coupling.groups) == ["a.weight"]
    assert coupling.frozen["spare.weight"] == "the forward pass never uses it"
    prune_once(net, image())
    assert net.spare.weight.shape == (4, 6, 3, 3)


def test_a_tensor_whose_channels_go_with_another_group_is_not_called_frozen() -> None:
    net = Net(lambda net, x: net.head(pooled(net.a(x) + net.b(x))), a=conv(3, 6), b=conv(3, 6), head=nn.Linear(6, 2))
    assert find_coupling(net, Example.of(image())).frozen == {"head.weight": "output of the network"}


def test_a_group_norm_with_a_group_for_each_channel_is_exact() -> None:
    net = randomise(nn.Sequential(conv(3, 8), nn.GroupNorm(8, 8), nn.ReLU(), conv(8, 2))).double()
    assert find_coupling(net, Example.of(image().double())).groups["0.weight"].inexact is None
    assert removal_error(net, image().double()) <= 1e-10
    assert net[1].num_groups == net[1].num_channels == net[0].out_channels < 8


@pytest.mark.parametrize(
    ("norm", "groups", "kept", "reason"),
    [
        (nn.GroupNorm(2, 8), 4, 4, "group norm"),
        (nn.GroupNorm(1, 8), 8, 4, "group norm"),
        (nn.LayerNorm([8, 8, 8]), 8, 4, "layer norm"),
    ],
)
def test_norms_over_channels_are_removable_but_reported_as_inexact(
    norm: nn.Module, groups: int, kept: int, reason: str
) -> None:
    net = nn.Sequential(conv(3, 8), norm, nn.ReLU(), conv(8, 6), nn.ReLU(), conv(6, 2))
    coupling = find_coupling(net, Example.of(image()))
    assert coupling.groups["0.weight"].size == groups
    assert coupling.groups["3.weight"].inexact is None
    report = prune_once(net, image())
    assert list(report.inexact) == ["0.weight"]
    assert report.inexact["0.weight"] == f"{reason}: its mean and variance run over the channels"
    assert net[0].out_channels == norm.weight.shape[0] == kept
    assert net(image()).shape == (2, 2, 8, 8)


def test_layer_norm_over_tokens_keeps_its_normalised_shape_in_line() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
    prune_once(net, image(2, 7, 5))
    assert net[1].normalized_shape == (4,)
    assert net(image(2, 7, 5)).shape == (2, 7, 3)


def test_a_number_written_in_the_code_is_found_by_the_verification() -> None:
    net = Net(
        lambda net, x: net.head(net.b(net.a(x)).view(len(x), 8, -1).mean(-1)),
        a=conv(3, 6), b=conv(6, 8), head=nn.Linear(8, 3),
    )  # fmt: skip
    report = prune_once(net, image())
    assert report.widths == {"a.weight": (6, 3)}
    assert report.frozen["b.weight"].startswith("forward gives the shape (2, 8, 32) instead of")
    assert net(image()).shape == (2, 3)


def test_control_flow_that_reads_values_falls_back_to_a_real_pass() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        y = F.max_pool1d(net.a(x), 2)
        return net.b(y) if x.abs().sum() > 0 else y

    net = randomise(Net(run, a=nn.Conv1d(3, 6, 3), b=nn.Conv1d(6, 2, 3)))
    coupling = find_coupling(net, Example.of(image(2, 3, 16)))
    assert not coupling.on_meta
    assert list(coupling.groups) == ["a.weight"]
    assert removal_error(net, image(2, 3, 16)) <= 1e-5
    assert find_coupling(nn.Sequential(conv(3, 6), conv(6, 2)), Example.of(image())).on_meta


def test_a_network_that_needs_targets_in_train_mode_is_traced_in_eval_mode() -> None:
    def run(net: Any, x: Tensor, target: Tensor | None = None) -> Tensor:
        if net.training:
            assert target is not None
        return net.b(net.a(x))

    net = Net(run, a=conv(3, 6), b=conv(6, 2))
    assert not find_coupling(net, Example.of(image())).passes.train_differs
    assert prune_once(net, image()).widths == {"a.weight": (6, 3)}


def test_analysis_does_not_change_the_network_or_the_random_state() -> None:
    net = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.Dropout(0.5), conv(6, 2)).train()
    before, random = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    for inputs in (image(), image(1, 3, 8, 8), image(5, 3, 8, 8)):
        find_coupling(net, Example.of(inputs))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())


def test_lazy_modules_are_refused_by_name() -> None:
    net = nn.Sequential(conv(3, 6), nn.Flatten(), nn.LazyLinear(2))
    for call in (lambda: find_coupling(net, Example.of(image())), lambda: prune_once(net, image())):
        with pytest.raises(ValueError, match=r"^'2.weight' is lazy and has no shape yet; run one batch through"):
            call()


def test_a_wrong_example_says_what_to_pass() -> None:
    with pytest.raises(ValueError, match=r"forward pass of Conv2d failed on the example input: .*example_input_array"):
        find_coupling(conv(3, 6), Example.of(image(2, 5, 8, 8)))


def test_reshaping_an_empty_tensor_is_harmless() -> None:
    net = Net(lambda net, x: net.b(net.a(x)) + x.new_zeros(2, 0).view(-1).sum(), a=conv(3, 6), b=conv(6, 2))
    assert list(find_coupling(net, Example.of(image())).groups) == ["a.weight"]


def attention(net: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).view(len(x), 8, -1) for layer in (net.q, net.k, net.v))
    mixed = (v @ (q.transpose(1, 2) @ k).softmax(-2)).relu()
    return net.head(pooled(mixed.view(len(x), -1, 8, 8)))


def test_a_reshape_that_would_run_with_channels_in_wrong_places_is_found() -> None:
    # Nothing fails and no output changes its shape: `-1` takes what the written number leaves.
    layers = {name: conv(3, 8) for name in "qkv"}
    net = Net(attention, before=conv(3, 3), **layers, head=nn.Linear(8, 3))
    net.run = lambda net, x: attention(net, net.before(x))
    inputs = image()
    report = prune_once(net, inputs)
    assert report.widths == {"before.weight": (3, 2)}
    assert re.match("forward gives the shape .* instead of", report.frozen["q.weight"])


def test_removals_that_change_the_shape_of_an_output_are_found() -> None:
    net = Net(
        lambda net, x: (net.c(net.b(net.a(x))), torch.zeros(len(x), net.b.out_channels, device=x.device)),
        a=conv(3, 6), b=conv(6, 4), c=conv(4, 2),
    )  # fmt: skip
    report = prune_once(net, image())
    assert report.widths == {"a.weight": (6, 3)}
    assert report.frozen["b.weight"] == "with fewer channels the shapes of the outputs change"
