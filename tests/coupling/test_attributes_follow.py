"""Integer attributes of the user's modules follow the widths, or the channels concerned are frozen with a reason."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune import prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.coupling import find_coupling
from lightning_prune.network.example_input import Example
from lightning_prune.surgery.apply import zero_removed


class Net(nn.Module):
    """``first`` makes 12 channels, ``second`` reads what ``run`` makes of them; ``run(net, x)`` is the forward pass."""

    def __init__(self, run: Callable[..., Tensor], second: int = 12, **attributes: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 12), nn.Linear(second, 3)
        self.run = run
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 7, 5)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    net.double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-1, 1, generator=draw)
    return net


def halve(net: nn.Module, inputs: Any, share: float = 0.5) -> tuple[Any, float]:
    """Prune ``net`` in place; the report, and the relative error against masking."""
    masked = copy.deepcopy(net)
    report = prune_once(net, inputs, budget=Ratio(share))
    zero_removed(masked, report.plan)
    example = Example.of(inputs)
    with torch.no_grad():
        found, expected = example.run(net), example.run(masked)
    assert found.shape == expected.shape
    assert expected.std() > 1e-4
    return report, float((found - expected).norm() / expected.norm())


@dataclass(frozen=True)
class Case:
    """A forward pass, the attributes that it reads, the widths after half of all is gone, and the attributes then."""

    run: Callable[..., Tensor]
    widths: dict[str, tuple[int, int]]
    after: dict[str, Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    second: int = 12


ALL = {"first.weight": (12, 6)}


def unequal(net: Any, x: Tensor) -> Tensor:
    a, b = net.first(x).split(net.sizes, dim=-1)
    return net.second(torch.cat([a.tanh(), b.relu()], -1))


CASES = {
    "hidden_dim in a view": Case(
        lambda net, x: net.second(net.first(x).view(-1, net.hidden_dim)), ALL, {"hidden_dim": 6}, {"hidden_dim": 12}
    ),
    "hidden_dim in a reshape to more dimensions": Case(
        lambda net, x: net.second(net.first(x).reshape(2, 7, 1, net.hidden_dim)),
        ALL, {"hidden_dim": 6}, {"hidden_dim": 12},
    ),
    "heads and head_dim": Case(
        lambda net, x: net.second(net.first(x).view(2, 7, net.num_heads, net.head_dim).flatten(2)),
        {"first.weight": (4, 2)}, {"num_heads": 3, "head_dim": 2}, {"num_heads": 3, "head_dim": 4},
    ),
    "heads * head_dim": Case(
        lambda net, x: net.second(
            net.first(x).view(2, 7, net.num_heads, net.head_dim).tanh().view(2, 7, net.num_heads * net.head_dim)
        ),
        {"first.weight": (4, 2)}, {"num_heads": 3, "head_dim": 2}, {"num_heads": 3, "head_dim": 4},
    ),
    "inner_dim on the way back": Case(
        lambda net, x: net.second(net.first(x).view(2, 7, net.num_heads, -1).tanh().view(2, 7, net.inner_dim)),
        {"first.weight": (4, 2)}, {"num_heads": 3, "inner_dim": 6}, {"num_heads": 3, "inner_dim": 12},
    ),
    "an attribute divided": Case(
        lambda net, x: net.second(net.first(x).view(2, 7, 3, net.dim // 3).flatten(2)),
        {"first.weight": (4, 2)}, {"dim": 6}, {"dim": 12},
    ),
    "an attribute multiplied": Case(
        lambda net, x: net.second(net.first(x).view(2, 7, 2 * net.dim)), ALL, {"dim": 3}, {"dim": 6}
    ),
    "unequal split, a tuple": Case(
        unequal, {"first.weight": (4, 2), "first.weight#2": (8, 4)}, {"sizes": (2, 4)}, {"sizes": (4, 8)}
    ),
    "unequal split, a list": Case(
        unequal, {"first.weight": (4, 2), "first.weight#2": (8, 4)}, {"sizes": [2, 4]}, {"sizes": [4, 8]}
    ),
    "unequal split, two attributes": Case(
        lambda net, x: net.second(torch.cat(net.first(x).split([net.a, net.b], dim=-1)[::-1], -1)),
        {"first.weight": (4, 2), "first.weight#2": (8, 4)}, {"a": 2, "b": 4}, {"a": 4, "b": 8},
    ),
    "the first third and the rest": Case(
        lambda net, x: net.second(torch.cat([net.first(x)[..., : net.k].tanh(), net.first(x)[..., net.k :]], -1)),
        {"first.weight": (8, 4), "first.weight#2": (4, 2)}, {"k": 2}, {"k": 4},
    ),
    "the first five and the rest": Case(
        lambda net, x: net.second(torch.cat([net.first(x)[..., net.k :], net.first(x)[..., : net.k].tanh()], -1)),
        {"first.weight": (7, 4), "first.weight#2": (5, 3)}, {"k": 3}, {"k": 5},
    ),
    "the first third": Case(
        lambda net, x: net.second(net.first(x)[..., : net.k].tanh()),
        {"first.weight": (8, 4), "second.weight": (4, 2)}, {"k": 2}, {"k": 4}, 4,
    ),
    "pieces of half the width": Case(
        lambda net, x: net.second(
            each((F.relu, torch.tanh), net.first(x).split(net.dim // 2, -1))
        ),
        {"first.weight": (6, 3), "first.weight#2": (6, 3)}, {"dim": 6}, {"dim": 12},
    ),
    "pieces of one size": Case(
        lambda net, x: net.second(
            each((F.relu, F.silu, torch.tanh), net.first(x).split(net.dim, -1))
        ),
        {"first.weight": (4, 2)}, {"dim": 2}, {"dim": 4},
    ),
    "pieces of one size that are counted": Case(
        lambda net, x: net.second(pieces(net, x)), {"first.weight": (4, 2)}, {"dim": 2}, {"dim": 4}
    ),
    "normalized_shape": Case(
        lambda net, x: net.second(F.layer_norm(net.first(x), (net.dim,))), ALL, {"dim": 6}, {"dim": 12}
    ),
    "normalized_shape, a tuple": Case(
        lambda net, x: net.second(F.layer_norm(net.first(x), net.shape)), ALL, {"shape": (6,)}, {"shape": (12,)}
    ),
    "x.size(-1)": Case(
        lambda net, x: net.second(net.first(x).view(2, 7, 3, net.first(x).size(-1) // 3).flatten(2)),
        {"first.weight": (4, 2)}, {},
    ),
    "an assertion": Case(
        lambda net, x: net.second(asserted(net.first(x), net.dim)), ALL, {"dim": 6}, {"dim": 12}
    ),
    "a comparison of shapes": Case(
        lambda net, x: net.second(net.first(x) if net.first(x).shape[-1] == net.dim else net.first(x) * 2),
        ALL, {"dim": 6}, {"dim": 12},
    ),
    "new_zeros": Case(
        lambda net, x: net.second(net.first(x) + x.new_zeros(2, 7, net.dim)), ALL, {"dim": 6}, {"dim": 12}
    ),
    "torch.ones": Case(
        lambda net, x: net.second(net.first(x) * torch.ones(net.dim, dtype=x.dtype, device=x.device)),
        ALL, {"dim": 6}, {"dim": 12},
    ),
    "expand": Case(
        lambda net, x: net.second(net.first(x).unsqueeze(1).expand(2, 4, 7, net.dim).mean(1)),
        ALL, {"dim": 6}, {"dim": 12},
    ),
    "unflatten": Case(
        lambda net, x: net.second(net.first(x).unflatten(-1, (3, net.d)).flatten(2)),
        {"first.weight": (4, 2)}, {"d": 2}, {"d": 4},
    ),
}  # fmt: skip


def each(functions: Any, tensors: Any) -> Tensor:
    return torch.cat([function(part) for function, part in zip(functions, tensors, strict=False)], -1)


def pieces(net: Any, x: Tensor) -> Tensor:
    a, b, c = net.first(x).split(net.dim, dim=-1)
    return torch.cat([b.tanh(), a, c.relu()], -1)


def asserted(x: Tensor, dim: int) -> Tensor:
    assert x.shape[-1] == dim, f"{x.shape[-1]} channels instead of {dim}"
    return x


@pytest.mark.parametrize("name", CASES)
def test_attributes_follow(name: str) -> None:
    case = CASES[name]
    net = randomised(Net(case.run, case.second, **case.attributes))
    report, error = halve(net, data())
    assert report.widths == case.widths
    for attribute, value in case.after.items():
        assert getattr(net, attribute) == value
        assert type(getattr(net, attribute)) is type(value)
    exact = not name.startswith("normalized_shape")
    assert bool(report.inexact) != exact
    if exact:
        assert error <= 1e-10
    net.train()
    net(data()).sum().backward()
    assert all(p.grad is not None for p in net.first.parameters())


@pytest.mark.parametrize("name", CASES)
def test_they_follow_a_second_event(name: str) -> None:
    case = CASES[name]
    net, built = (randomised(Net(case.run, case.second, **case.attributes)) for _ in range(2))
    halve(net, data(), 0.25)
    report, error = halve(net, data(), 0.5)
    assert report.inexact or error <= 1e-10
    assert 0 < net.first.out_features < 9
    for attribute, value in net.__dict__.items():
        if attribute in case.after:
            setattr(built, attribute, value)
    built.first, built.second = nn.Linear(5, net.first.out_features), nn.Linear(net.second.in_features, 3)
    built.double().load_state_dict(net.state_dict())
    assert torch.equal(built(data()), net(data()))


def test_dry_runs_change_no_attribute() -> None:
    net = randomised(Net(CASES["unequal split, a list"].run, sizes=[4, 8]))
    before = net.sizes
    report = prune_once(net, data(), dry_run=True)
    assert net.sizes is before
    assert before == [4, 8]
    assert report.plan.attributes == {"": {"sizes": {0: 2, 1: 4}}}


def test_analysis_and_pruning_leave_plain_numbers_behind() -> None:
    net = randomised(Net(CASES["heads and head_dim"].run, num_heads=3, head_dim=4, other=12, pair=(1, 2)))
    find_coupling(net, Example.of(data()))
    assert all(type(getattr(net, name)) is int for name in ("num_heads", "head_dim", "other"))
    prune_once(net, data())
    assert all(type(getattr(net, name)) is int for name in ("num_heads", "head_dim", "other"))
    assert (net.other, net.pair) == (12, (1, 2))
    assert all(type(item) is int for item in net.pair)


class Tokens(nn.Module):
    """A submodule that keeps its own numbers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.mix = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x).reshape(-1, self.dim)


def test_attributes_of_a_submodule() -> None:
    net = Net(lambda net, x: net.second(net.blocks[1](net.blocks[0](net.first(x)))), dim=12)
    net.blocks = nn.ModuleList([Tokens(12), Tokens(12)])
    randomised(net)
    report, error = halve(net, data())
    assert error <= 1e-10
    assert report.widths == {"first.weight": (12, 6), "blocks.0.mix.weight": (12, 6), "second.weight": (12, 6)}
    assert [block.dim for block in net.blocks] == [6, 6]
    assert net.dim == 12  # never read
    assert report.plan.attributes == {"blocks.0": {"dim": 6}, "blocks.1": {"dim": 6}}


def test_one_attribute_for_two_layers_makes_them_shrink_together() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        a, b = net.first(x).view(-1, net.dim), net.other(x).view(-1, net.dim)
        return net.second(a.tanh()) + net.third(b.tanh())

    net = Net(run, dim=12)
    net.other, net.third = nn.Linear(5, 12), nn.Linear(12, 3)
    randomised(net)
    coupling = find_coupling(net, Example.of(data()))
    assert [dict(bundle.quantum) for bundle in coupling.bundles] == [{"first.weight": 1, "other.weight": 1}]
    report, error = halve(net, data())
    assert report.widths == {"first.weight": (12, 6), "other.weight": (12, 6)}
    assert report.plan.keep["first.weight"][0].tolist() != report.plan.keep["other.weight"][0].tolist()
    assert (net.dim, error <= 1e-10, report.inexact) == (6, True, {})


def test_one_attribute_for_a_width_and_its_double() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        a, b = net.first(x).view(-1, net.dim), net.other(x).view(-1, 2 * net.dim)
        return net.second(a.tanh()) + net.third(b.tanh())

    net = Net(run, dim=12)
    net.other, net.third = nn.Linear(5, 24), nn.Linear(24, 3)
    randomised(net)
    report, error = halve(net, data(), 0.25)
    assert report.widths == {"first.weight": (12, 9), "other.weight": (24, 18)}
    assert (net.dim, error <= 1e-10, report.inexact) == (9, True, {})


def frozen_in(net: nn.Module, inputs: Any = None) -> dict[str, str]:
    """Why ``first`` cannot shrink; ``free`` can, so that there is something to prune."""
    net.free = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    run = net.run
    net.run = lambda net, *x: run(net, *x).reshape(2, 7, 3) + net.free(x[0])
    randomised(net)
    report, error = halve(net, data() if inputs is None else inputs)
    assert error <= 1e-10
    assert report.widths == {"free.0.weight": (4, 2)}
    assert net.first.out_features == 12
    return {name: why for name, why in report.frozen.items() if name.startswith("first.weight")}


FROZEN = {
    "sizes written as numbers": (
        lambda net, x: net.second(torch.cat(net.first(x).split([4, 8], -1)[::-1], -1)),
        {},
        "forward splits into (4, 8), written as numbers",
    ),
    "a slice written as a number": (
        lambda net, x: net.second(torch.cat([net.first(x)[..., :5], net.first(x)[..., 5:]], -1)),
        {},
        "forward slices 5 of 12 channels, written as a number",
    ),
    "a view written as a number": (
        lambda net, x: net.second(net.first(x).view(-1, 12)), {}, "forward gives the shape "
    ),
    "a single channel": (
        lambda net, x: net.second(net.first(x)[..., 3:4] * net.first(x)),
        {},
        "forward slices 1 of 12 channels, written as a number",
    ),
    "an attribute that counts something of the input too": (
        lambda net, x: net.second(net.first(x).view(-1, net.dim)) + x[:, :6, :4].reshape(net.dim, 4).sum(),
        {"dim": 12},
        None,
    ),
    "int() loses what a number counts": (
        lambda net, x: net.second(net.first(x).view(-1, int(net.dim))), {"dim": 12}, None
    ),
    "floating point loses it": (
        lambda net, x: net.second(net.first(x).view(-1, int(net.dim * 0.5) * 2)), {"dim": 12}, None
    ),
    "math.floor loses it": (
        lambda net, x: net.second(net.first(x).view(-1, math.floor(net.dim / 1))), {"dim": 12}, None
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_channels_of_attributes_that_cannot_follow_are_frozen_with_a_reason(name: str) -> None:
    run, attributes, why = FROZEN[name]
    reasons = frozen_in(Net(run, **attributes))
    assert reasons
    if why is not None:
        assert all(reason.startswith(why) for reason in reasons.values())


def test_a_reason_names_the_module() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = x.split([4, 8], dim=-1)
            return torch.cat([a.tanh(), b], -1)

    net = Net(lambda net, x: net.second(net.blocks["3"].gate(net.first(x))))
    net.blocks = nn.ModuleDict({"3": nn.ModuleDict({"gate": Gate()})})
    assert frozen_in(net) == {"first.weight": "'blocks.3.gate': forward splits into (4, 8), written as numbers"}


def test_an_attribute_of_the_batch_is_no_width() -> None:
    net = randomised(Net(lambda net, x: net.second(net.first(x).view(net.batch * net.tokens, -1)), batch=2, tokens=7))
    report, error = halve(net, data())
    assert (report.widths, net.batch, net.tokens, error <= 1e-10) == (ALL, 2, 7, True)


@pytest.mark.parametrize("tokens", [12, 6])
def test_an_attribute_that_equals_a_width_by_chance(tokens: int) -> None:
    """12 tokens and 12 channels: only the attribute that the channels are reshaped by follows."""

    def run(net: Any, x: Tensor) -> Tensor:
        return net.second(net.first(x).reshape(-1, net.tokens, net.dim)[:, : net.tokens])

    net = randomised(Net(run, tokens=tokens, dim=12))
    report, error = halve(net, data(2, tokens, 5))
    assert (report.widths, net.tokens, net.dim, error <= 1e-10) == (ALL, tokens, 6, True)


def test_booleans_strings_and_private_numbers_stay() -> None:
    net = Net(CASES["hidden_dim in a view"].run, hidden_dim=12, flag=True, text="12", _private=12, pair=(12, "a"))
    randomised(net)
    halve(net, data())
    assert (net.hidden_dim, net.flag, net.text, net._private, net.pair) == (6, True, "12", 12, (12, "a"))


def test_einops_is_never_wrong(monkeypatch) -> None:
    einops = pytest.importorskip("einops")

    def run(net: Any, x: Tensor) -> Tensor:
        y = einops.rearrange(net.first(x), "b n (h d) -> b h n d", h=net.heads).tanh()
        return net.second(einops.rearrange(y, "b h n d -> b n (h d)"))

    net = randomised(Net(run, heads=3))
    net.free = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    net.run = lambda net, x: run(net, x) + net.free(x)
    randomised(net)
    report, error = halve(net, data())
    assert error <= 1e-10
    assert report.inexact == {}
    assert report.widths.get("first.weight") in (None, (4, 2))
    assert report.widths["free.0.weight"] == (4, 2)
