"""Groups of small networks against groups written by hand, and removal = masking on each of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.coupling_nets import Net, conv, groups_of, image, pooled, randomise, removal_error
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune import prune_once
from lightning_prune.coupling import find_coupling
from lightning_prune.network.example_input import Example

Groups = dict[str, tuple[int, dict[tuple[str, int], int]]]


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    groups: Groups
    inputs: Callable[[], Any] = image


def made(name: str) -> dict[tuple[str, int], int]:
    return {(f"{name}.weight", 0): 1, (f"{name}.bias", 0): 1}


def norm(name: str) -> dict[tuple[str, int], int]:
    return {(f"{name}.{tensor}", 0): 1 for tensor in ("weight", "bias", "running_mean", "running_var")}


def read(name: str, times: int = 1) -> dict[tuple[str, int], int]:
    return {(f"{name}.weight", 1): times}


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def squeeze_and_excite(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    gate = net.up(net.down(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
    return net.head(pooled(x * gate))


def concat_of_concat(net: Any, x: Tensor) -> Tensor:
    a = net.a(x)
    b = torch.cat([a, net.b(a)], 1)
    return net.head(pooled(torch.cat([b, net.c(b)], 1)))


def u_net(net: Any, x: Tensor) -> Tensor:
    high = net.enc1(x).relu()
    low = net.enc2(F.max_pool2d(high, 2)).relu()
    up = torch.cat([net.up(low), high], 1)
    return net.out(net.dec(up).relu())


def option_a(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    return net.head(pooled((net.bn(net.b(x)) + shortcut).relu()))


def fake_pad(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.head(pooled(net.b(F.pad(x, (0, 0, 0, 0, 1, 2)))))


CASES = {
    "plain chain": Case(
        lambda: nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4), nn.PReLU(4), conv(4, 5)),
        {
            "0.weight": (6, {**made("0"), **norm("1"), **read("3")}),
            "3.weight": (4, {**made("3"), ("4.weight", 0): 1, **read("5")}),
        },
    ),
    "batch norm without affine": Case(
        lambda: nn.Sequential(conv(3, 6), nn.BatchNorm2d(6, affine=False), nn.ReLU(), conv(6, 4)),
        {"0.weight": (6, {**made("0"), ("1.running_mean", 0): 1, ("1.running_var", 0): 1, **read("3")})},
    ),
    "residual add": Case(
        lambda: Net(
            lambda net, x: (lambda y: net.head(pooled(y + net.c(net.b(y).relu()))))(net.a(x)),
            a=conv(3, 6), b=conv(6, 4), c=conv(4, 6), head=nn.Linear(6, 5),
        ),
        {
            "a.weight": (6, {**made("a"), **read("b"), **made("c"), **read("head")}),
            "b.weight": (4, {**made("b"), **read("c")}),
        },
    ),
    "concat": Case(
        lambda: Net(
            lambda net, x: net.head(pooled(net.bn(torch.cat([net.a(x), net.b(x)], 1)))),
            a=conv(3, 6), b=conv(3, 4), bn=nn.BatchNorm2d(10), head=nn.Linear(10, 5),
        ),
        {
            "a.weight": (6, {**made("a"), **norm("bn"), **read("head")}),
            "b.weight": (4, {**made("b"), **norm("bn"), **read("head")}),
        },
    ),
    "concat of concat": Case(
        lambda: Net(concat_of_concat, a=conv(3, 4), b=conv(4, 5), c=conv(9, 6), head=nn.Linear(15, 3)),
        {
            "a.weight": (4, {**made("a"), **read("b"), **read("c"), **read("head")}),
            "b.weight": (5, {**made("b"), **read("c"), **read("head")}),
            "c.weight": (6, {**made("c"), **read("head")}),
        },
    ),
    "flatten": Case(
        lambda: nn.Sequential(conv(3, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 7), nn.Linear(7, 2)),
        {
            "0.weight": (4, {**made("0"), **read("4", 16)}),
            "4.weight": (7, {**made("4"), **read("5")}),
        },
    ),
    "flatten with channels last": Case(
        lambda: Net(
            lambda net, x: net.head(net.a(x).permute(0, 2, 3, 1).flatten(1)), a=conv(3, 4), head=nn.Linear(256, 3)
        ),
        {"a.weight": (4, {**made("a"), **read("head", 64)})},
    ),
    "depthwise": Case(
        lambda: nn.Sequential(conv(3, 6), conv(6, 6, groups=6), conv(6, 4)),
        {"0.weight": (6, {**made("0"), **made("1"), **read("2")})},
    ),
    "depthwise with a multiplier": Case(
        lambda: nn.Sequential(conv(3, 4), conv(4, 12, groups=4, bias=False), conv(12, 2)),
        {"0.weight": (4, {**made("0"), ("1.weight", 0): 3, ("2.weight", 1): 3})},
    ),
    "grouped": Case(
        lambda: nn.Sequential(conv(3, 8, bias=False), conv(8, 6, groups=2, bias=False), conv(6, 4)),
        {
            "0.weight": (4, {("0.weight", 0): 2, ("1.weight", 1): 1}),
            "1.weight": (3, {("1.weight", 0): 2, ("2.weight", 1): 2}),
        },
    ),
    "channel shuffle": Case(
        lambda: Net(lambda net, x: net.head(pooled(shuffle(net.a(x), 2))), a=conv(3, 8), head=nn.Linear(8, 3)),
        {"a.weight": (4, {("a.weight", 0): 2, ("a.bias", 0): 2, ("head.weight", 1): 2})},
    ),
    "chunk": Case(
        lambda: Net(
            lambda net, x: (lambda p: net.head(pooled(p[0] * p[1].sigmoid())))(net.a(x).chunk(2, 1)),
            a=conv(3, 8), head=nn.Linear(4, 3),
        ),
        {"a.weight": (4, {("a.weight", 0): 2, ("a.bias", 0): 2, ("head.weight", 1): 1})},
    ),
    "squeeze and excitation": Case(
        lambda: Net(squeeze_and_excite, a=conv(3, 8), down=conv(8, 3, 1), up=conv(3, 8, 1), head=nn.Linear(8, 4)),
        {
            "a.weight": (8, {**made("a"), **read("down"), **made("up"), **read("head")}),
            "down.weight": (3, {**made("down"), **read("up")}),
        },
    ),
    "transposed": Case(
        lambda: nn.Sequential(conv(3, 6), nn.ConvTranspose2d(6, 4, 2, 2), nn.BatchNorm2d(4), conv(4, 2)),
        {
            "0.weight": (6, {**made("0"), ("1.weight", 0): 1}),
            "1.weight": (4, {("1.weight", 1): 1, ("1.bias", 0): 1, **norm("2"), **read("3")}),
        },
    ),
    "transposed depthwise": Case(
        lambda: nn.Sequential(conv(3, 6), nn.ConvTranspose2d(6, 6, 2, 2, groups=6), conv(6, 2)),
        {"0.weight": (6, {**made("0"), ("1.weight", 0): 1, ("1.bias", 0): 1, **read("2")})},
    ),
    "transposed grouped": Case(
        lambda: nn.Sequential(conv(3, 6, bias=False), nn.ConvTranspose2d(6, 8, 2, 2, groups=2), conv(8, 2)),
        {
            "0.weight": (3, {("0.weight", 0): 2, ("1.weight", 0): 2}),
            "1.weight": (4, {("1.weight", 1): 1, ("1.bias", 0): 2, ("2.weight", 1): 2}),
        },
    ),
    "u-net": Case(
        lambda: Net(
            u_net, enc1=conv(3, 4), enc2=conv(4, 6), up=nn.ConvTranspose2d(6, 5, 2, 2), dec=conv(9, 7), out=conv(7, 2)
        ),
        {
            "enc1.weight": (4, {**made("enc1"), **read("enc2"), **read("dec")}),
            "enc2.weight": (6, {**made("enc2"), ("up.weight", 0): 1}),
            "up.weight": (5, {("up.weight", 1): 1, ("up.bias", 0): 1, **read("dec")}),
            "dec.weight": (7, {**made("dec"), **read("out")}),
        },
    ),
    "shortcut padded with zero channels": Case(
        lambda: Net(option_a, a=conv(3, 4), b=conv(4, 8, stride=2), bn=nn.BatchNorm2d(8), head=nn.Linear(8, 3)),
        {"a.weight": (4, {**made("a"), **made("b"), **read("b"), **norm("bn"), **read("head")})},
    ),
    "channels padded before a layer": Case(
        lambda: Net(fake_pad, a=conv(3, 4), b=conv(7, 6), head=nn.Linear(6, 3)),
        {
            "a.weight": (4, {**made("a"), **read("b")}),
            "b.weight": (6, {**made("b"), **read("head")}),
        },
    ),
    "module called twice": Case(
        lambda: Net(
            lambda net, x: net.head(pooled(net.b(net.b(net.a(x)).relu()))), a=conv(3, 6), b=conv(6, 6),
            head=nn.Linear(6, 3),
        ),
        {"a.weight": (6, {**made("a"), **made("b"), **read("b"), **read("head")})},
    ),
    "matrix product of two branches": Case(
        lambda: Net(
            lambda net, x: net.head((net.a(x).flatten(2).transpose(1, 2) @ net.b(x).flatten(2)).flatten(1)),
            a=conv(3, 6), b=conv(3, 6), head=nn.Linear(64 * 64, 2),
        ),
        {"a.weight": (6, {**made("a"), **made("b")})},
    ),
    "einsum": Case(
        lambda: Net(
            lambda net, x: net.head(pooled(torch.einsum("nchw,dc->ndhw", net.a(x), net.b.weight))),
            a=conv(3, 6), b=nn.Linear(6, 4, bias=False), head=nn.Linear(4, 3),
        ),
        {
            "a.weight": (6, {**made("a"), **read("b")}),
            "b.weight": (4, {("b.weight", 0): 1, **read("head")}),
        },
    ),
    "repeat": Case(
        lambda: Net(lambda net, x: net.head(pooled(net.a(x).repeat(1, 2, 1, 1))), a=conv(3, 4), head=nn.Linear(8, 3)),
        {"a.weight": (4, {**made("a"), **read("head", 2)})},
    ),
    "instance norm": Case(
        lambda: nn.Sequential(
            conv(3, 6), nn.InstanceNorm2d(6, affine=True, track_running_stats=True), nn.ReLU(), conv(6, 2)
        ),
        {"0.weight": (6, {**made("0"), **norm("1"), **read("3")})},
    ),
    "embedding": Case(
        lambda: Net(lambda net, x: net.head(net.a(x).mean(1)), a=nn.Embedding(9, 6), head=nn.Linear(6, 3)),
        {"a.weight": (6, {("a.weight", 1): 1, **read("head")})},
        lambda: torch.arange(8).reshape(2, 4),
    ),
    "1-D": Case(
        lambda: nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.MaxPool1d(2), nn.Conv1d(6, 3, 3)),
        {"0.weight": (6, {**made("0"), **norm("1"), **read("3")})},
        lambda: image(2, 2, 16),
    ),
    "3-D": Case(
        lambda: nn.Sequential(
            nn.Conv3d(1, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(6 * 8, 3)
        ),
        {"0.weight": (6, {**made("0"), **norm("1"), **read("5", 8)})},
        lambda: image(2, 1, 6, 6, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_groups_are_those_written_down_by_hand(name: str) -> None:
    case = CASES[name]
    assert groups_of(find_coupling(case.make(), Example.of(case.inputs()))) == case.groups


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_removing_equals_masking(name: str, seed: int) -> None:
    case = CASES[name]
    torch.manual_seed(seed)
    assert removal_error(randomise(case.make(), seed), case.inputs(), seed) <= 1e-5


def test_members_hold_the_indices_of_every_unit() -> None:
    # 8 channels shuffled in 2 groups: channel c of 0..3 goes with channel c + 4, and they sit side by side behind.
    group = find_coupling(CASES["channel shuffle"].make(), Example.of(image())).groups["a.weight"]
    index = {(m.tensor, m.dim): m.index.tolist() for m in group.members}
    assert index["a.weight", 0] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert index["head.weight", 1] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert {m.tensor: m.reads for m in group.members} == {"a.weight": False, "a.bias": False, "head.weight": True}


def test_padded_channels_are_frozen_and_the_others_removable() -> None:
    coupling = find_coupling(CASES["shortcut padded with zero channels"].make(), Example.of(image()))
    index = {(m.tensor, m.dim): m.index.flatten().tolist() for m in coupling.groups["a.weight"].members}
    assert index["a.weight", 0] == [0, 1, 2, 3]
    assert index["b.weight", 0] == index["head.weight", 1] == [2, 3, 4, 5]


def test_tied_weights_are_one_tensor() -> None:
    net = Net(lambda net, x: net.b(net.a(x).mean(1)), a=nn.Embedding(9, 6), b=nn.Linear(6, 9))
    net.b.weight = net.a.weight
    assert groups_of(find_coupling(net, Example.of(torch.arange(8).reshape(2, 4)))) == {
        "a.weight": (6, {("a.weight", 1): 1})
    }
    assert removal_error(net, torch.arange(8).reshape(2, 4)) <= 1e-5
    assert net.b.weight is net.a.weight
    assert net.b.in_features == net.a.embedding_dim < 6


def test_groups_that_begin_in_one_tensor_are_named_by_what_is_their_own() -> None:
    net = Net(
        lambda net, x: (lambda y: net.head(pooled(y + torch.cat([net.b(x), net.c(x)], 1))))(net.a(x)),
        a=conv(3, 6), b=conv(3, 2), c=conv(3, 4), head=nn.Linear(6, 3),
    )  # fmt: skip
    assert groups_of(find_coupling(net, Example.of(image()))) == {
        "b.weight": (2, {**made("a"), **made("b"), **read("head")}),
        "c.weight": (4, {**made("a"), **made("c"), **read("head")}),
    }
    assert removal_error(net, image()) <= 1e-5


def test_a_group_with_one_unit_left_keeps_its_name() -> None:
    def run(net: Any, x: Tensor) -> Any:
        b = net.b(x)
        left, right = b.chunk(2, 1)
        return net.head(pooled(net.a(x) + torch.cat([b, net.c(x)], 1))), left * right

    net = Net(run, a=conv(3, 6), b=conv(3, 2), c=conv(3, 4), head=nn.Linear(6, 3))
    coupling = find_coupling(net, Example.of(image()))
    assert list(coupling.groups) == ["c.weight"]
    assert coupling.frozen["b.weight"] == "all of its channels can only go together"


def test_auxiliary_head_of_the_train_mode_is_followed() -> None:
    def run(net: Any, x: Tensor) -> Any:
        y = net.a(x)
        return (net.head(pooled(y)), net.aux(pooled(y))) if net.training else net.head(pooled(y))

    net = Net(run, a=conv(3, 6), head=nn.Linear(6, 3), aux=nn.Linear(6, 3))
    assert groups_of(find_coupling(net, Example.of(image())))["a.weight"] == (
        6,
        {**made("a"), **read("head"), **read("aux")},
    )


@pytest.mark.parametrize(
    ("inputs", "run"),
    [
        (image(), lambda net, x: net.b(net.a(x))),
        ((image(), image(seed=1)), lambda net, x, y: net.b(net.a(x) + y.mean())),
        ({"y": image(), "x": image(seed=1)}, lambda net, x, *, y: net.b(net.a(x) + net.a(y))),
    ],
)
def test_example_inputs_single_tuple_and_dict(inputs: Any, run: Callable[..., Any]) -> None:
    net = Net(run, a=conv(3, 6), b=conv(6, 2))
    assert groups_of(find_coupling(net, Example.of(inputs))) == {"a.weight": (6, {**made("a"), **read("b")})}


def test_outputs_in_dicts_and_dataclasses_freeze_what_they_carry() -> None:
    @dataclass
    class Output:
        scores: Tensor

    for wrap in (lambda y: {"scores": [y]}, Output):
        net = Net(lambda net, x, wrap=wrap: wrap(net.b(net.a(x))), a=conv(3, 6), b=conv(6, 2))
        coupling = find_coupling(net, Example.of(image()))
        assert list(coupling.groups) == ["a.weight"]
        assert coupling.frozen["b.weight"] == "output of the network"


def test_float64_is_exact_to_its_own_precision() -> None:
    torch.manual_seed(0)
    for name in ("concat of concat", "squeeze and excitation", "shortcut padded with zero channels"):
        net = randomise(CASES[name].make().double())
        assert removal_error(net, image().double()) <= 1e-12
        assert {p.dtype for p in net.parameters()} == {torch.float64}


def test_a_shuffle_written_with_the_number_of_channels_in_a_group_shrinks_in_the_other_factor() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        y = y.view(len(x), -1, 2, 8, 8).transpose(1, 2).reshape(len(x), -1, 8, 8)
        return net.head(pooled((y * net.b(x)).relu()))

    net = Net(run, a=conv(3, 8), b=conv(3, 8), head=nn.Linear(8, 3))
    (group,) = find_coupling(net, Example.of(image())).groups.values()
    assert group.size == 4
    assert [m.index[1].tolist() for m in group.members if m.tensor == "a.weight"] == [[2, 3]]
    assert [m.index[1].tolist() for m in group.members if m.tensor == "b.weight"] == [[1, 5]]
    assert removal_error(net, image()) <= 1e-5


@pytest.mark.parametrize("layer", [nn.Unflatten(1, (8, 2, 2)), nn.Unflatten(1, (-1, 2, 2))])
def test_a_decoder_that_unflattens_shrinks_in_its_channels(layer: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(6, 32), layer, nn.Conv2d(8, 6, 1), nn.Conv2d(6, 3, 1))
    report = prune_once(net, torch.randn(2, 6))
    assert report.widths == {"0.weight": (8, 4), "2.weight": (6, 3)}
    assert net[1].unflattened_size[0] in (4, -1)
    assert net(torch.randn(2, 6)).shape == (2, 3, 2, 2)


def branches(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.head(pooled(net.b(y) if net.training else net.c(y)))


def features_in_training(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    z = net.head(pooled(y))
    return (z, y) if net.training else z


def test_layers_of_the_same_shapes_that_only_train_mode_uses_are_followed() -> None:
    net = Net(branches, a=conv(3, 8), b=conv(8, 6), c=conv(8, 6), head=nn.Linear(6, 3))
    report = prune_once(net, image())
    assert report.widths["a.weight"] == (8, 4)
    assert net.b.in_channels == net.c.in_channels == 4
    net.train()(image()).sum().backward()


def test_what_only_train_mode_returns_keeps_its_shape() -> None:
    net = Net(features_in_training, a=conv(3, 8), b=conv(3, 8), head=nn.Linear(8, 3))
    assert "a.weight" not in find_coupling(net, Example.of(image())).groups
