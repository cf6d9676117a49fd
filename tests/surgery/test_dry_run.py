"""Widths tried on a copy: who breaks a network, found by what was foreseen or by bisection."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_prune import prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.coupling import Coupling, find_coupling
from lightning_prune.network.example_input import Example
from lightning_prune.surgery.dry_run import DryRunResult, try_widths

NAMES = ["a", "b", "c", "d"]


class Branches(nn.Module):
    """Four branches of 8 channels; ``check(widths)`` raises, or says by how much to widen the output."""

    def __init__(self, check: Callable[[dict[str, int]], int], reads_values: bool = False) -> None:
        super().__init__()
        self.ins = nn.ModuleDict({name: nn.Linear(5, 8) for name in NAMES})
        self.outs = nn.ModuleDict({name: nn.Linear(8, 3) for name in NAMES})
        self.check, self.reads_values, self.passes = check, reads_values, []

    def forward(self, x: Tensor) -> Tensor:
        if self.reads_values and float(x.sum()) > 1e9:
            return x
        made = {name: layer(x) for name, layer in self.ins.items()}
        wider = self.check({name: tensor.detach().size()[-1] + 0 for name, tensor in plain(made).items()})
        out = sum(self.outs[name](tensor) for name, tensor in made.items())
        return torch.cat([out] * (1 + wider), -1)


def plain(made: dict[str, Tensor]) -> dict[str, Any]:
    """The sizes without their memory, as numbers of which the analysis knows nothing."""
    return {
        name: torch.Size(int(n) for n in tensor.shape) and Sized(int(tensor.shape[-1])) for name, tensor in made.items()
    }


class Sized:
    """Stands for a tensor of which only the last size matters."""

    def __init__(self, width: int) -> None:
        self.width = width

    def detach(self) -> "Sized":
        return self

    def size(self) -> list[int]:
        return [self.width]


def trial(
    check: Callable[[dict[str, int]], int], names: list[str] = NAMES, reads_values: bool = False
) -> tuple[DryRunResult, Coupling, Branches]:
    net = Branches(check, reads_values).eval()
    example = Example.of(torch.randn(2, 5))
    coupling = find_coupling(net, example)
    assert list(coupling.groups) == [f"ins.{name}.weight" for name in NAMES]
    gone = torch.zeros(8, dtype=torch.bool).index_fill_(0, torch.tensor([0, 1]), True)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = try_widths(net, example, coupling, {f"ins.{n}.weight": gone if n in names else ~gone & gone for n in NAMES})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    return found, coupling, net


def failing(found: DryRunResult) -> set[str]:
    return {name.split(".")[1] for name in found.failing}


def refusing(*parts: str) -> Callable[[dict[str, int]], int]:
    """Raises if all branches of one of the parts are narrower than 8."""

    def check(widths: dict[str, int]) -> int:
        for part in parts:
            if all(widths[name] < 8 for name in part):
                raise RuntimeError(f"{part} is too narrow\nand a second line")
        return 0

    return check


@pytest.mark.parametrize("reads_values", [False, True])
def test_nothing_fails(reads_values: bool) -> None:
    found, coupling, _ = trial(lambda widths: 0, reads_values=reads_values)
    assert found.failing == {}
    assert coupling.on_meta is not reads_values
    assert len(found.scalars) >= len(coupling.scalars)


@pytest.mark.parametrize("reads_values", [False, True])
@pytest.mark.parametrize("culprits", ["a", "b", "d", "ac", "bd", "abc", "abcd"])
def test_bisection_finds_every_culprit(culprits: str, reads_values: bool) -> None:
    found, _, _ = trial(refusing(*culprits), reads_values=reads_values)
    assert failing(found) == set(culprits)
    assert all(why.endswith(f"fails: {n.split('.')[1]} is too narrow") or "is too narrow" in why
               for n, why in found.failing.items())  # fmt: skip
    assert all("\n" not in why for why in found.failing.values())


@pytest.mark.parametrize("pair", ["ab", "bc", "ad", "cd"])
def test_of_two_that_fail_only_together_one_stays(pair: str) -> None:
    found, _, _ = trial(refusing(pair))
    assert len(failing(found)) == 1
    assert failing(found) < set(pair)


@pytest.mark.parametrize("parts", [("ab", "c"), ("abc",), ("ab", "cd"), ("ab", "bc", "ca")])
def test_what_is_left_runs(parts: tuple[str, ...]) -> None:
    check = refusing(*parts)
    found, _, _ = trial(check)
    left = set(NAMES) - failing(found)
    check({name: 6 if name in left else 8 for name in NAMES})  # does not raise
    for name in failing(found):  # and nothing stays for no reason
        with pytest.raises(RuntimeError):
            check({n: 6 if n in left or n == name else 8 for n in NAMES})


def test_outputs_keep_their_shapes() -> None:
    found, _, _ = trial(lambda widths: int(widths["c"] < 8))
    assert failing(found) == {"c"}
    assert set(found.failing.values()) == {"with fewer channels the shapes of the outputs change"}


def test_groups_that_lose_nothing_are_not_tried() -> None:
    found, _, _ = trial(refusing("a"), names=["b", "c"])
    assert found.failing == {}


def test_nobody_can_go() -> None:
    net = Branches(refusing(*NAMES)).eval()
    with pytest.raises(ValueError, match="no channel of the network can be removed"):
        prune_once(net, torch.randn(2, 5))
    assert {layer.out_features for layer in net.ins.values()} == {8}


def test_a_network_that_fails_only_in_train_mode() -> None:
    class Training(Branches):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if self.training:
                self.check_wide(Sized(int(self.ins["b"](x).tanh().shape[-1])))
            return out

        def check_wide(self, sized: Sized) -> None:
            if sized.width < 8:
                raise RuntimeError("b is too narrow to train")

    net = Training(lambda widths: 0)
    report = prune_once(net, torch.randn(2, 5))
    assert [name for name in report.frozen if name.startswith("ins")] == ["ins.b.weight"]
    assert net.training
    net(torch.randn(2, 5)).sum().backward()


class Wrong(nn.Module):
    """A number written in the code beside -1: it would run, with channels in the wrong places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = nn.Linear(5, 8), nn.Linear(5, 8)
        self.second, self.third = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).view(2, -1, 4)  # tokens and channels together
        return self.second(y.flatten(1)) + self.third(self.other(x))


def test_suspects_are_named_by_what_was_foreseen() -> None:
    net, example = Wrong().eval(), Example.of(torch.randn(2, 5))
    coupling = find_coupling(net, example)
    if "first.weight" not in coupling.groups:
        pytest.skip("frozen before it is tried")
    group = coupling.groups["first.weight"]
    gone = {
        "first.weight": torch.arange(group.size) < group.size // 2, "other.weight": torch.arange(8) < 4,
    }  # fmt: skip
    found = try_widths(net, example, coupling, gone)
    assert set(found.failing) in ({"first.weight"}, set())


def test_numbers_in_the_code_never_put_channels_in_wrong_places() -> None:
    from lightning_prune.surgery.apply import zero_removed

    torch.manual_seed(0)
    net = Wrong().double().eval()
    masked, x = copy.deepcopy(net), torch.randn(2, 5, dtype=torch.float64)
    report = prune_once(net, x, budget=Ratio(0.5))
    zero_removed(masked, report.plan)
    assert report.widths["other.weight"] == (8, 4)
    assert torch.allclose(net(x), masked(x), rtol=1e-10)


@pytest.mark.parametrize("drop", [nn.functional.dropout, nn.functional.dropout2d])
def test_dropout_that_is_always_on_is_no_other_way(drop: Any) -> None:
    class Uncertain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(drop(self.first(x), 0.5, training=True))

    assert prune_once(Uncertain(), torch.randn(2, 3, 4, 4)).widths == {"first.weight": (8, 4)}


class Decoder(nn.Module):
    """Spreads a vector over an image, as generators do; ``view`` says how."""

    def __init__(self, view: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16 * 4 * 4)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Conv2d(8, 3, 1)
        self.channels, self.size = 16, 4
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.view(self, self.first(x).relu())))


NUMBERS = {
    "asks for the shape (2, 16, 4, 4) instead of (2, 8, 4, 4)": lambda net, h: h.view(len(h), 16, net.size, net.size),
    "gives the shape (1, 16, 4, 4) instead of (2, 8, 4, 4)": lambda net, h: h.view(-1, 16, 4, 4),
}
FOLLOWING = {
    "-1": lambda net, h: h.view(len(h), -1, 4, 4),
    "attributes": lambda net, h: h.view(-1, net.channels, net.size, net.size),
    "computed": lambda net, h: h.view(len(h), h.shape[1] // net.size**2, net.size, net.size),
}


@pytest.mark.parametrize("said", NUMBERS)
def test_a_vector_spread_over_an_image_by_numbers_stays(said: str) -> None:
    report = prune_once(Decoder(NUMBERS[said]), torch.randn(2, 6))
    assert report.widths == {"up.weight": (8, 4)}
    assert report.frozen["first.weight"] == f"forward {said} with fewer channels: a number is written in the code"


@pytest.mark.parametrize("name", FOLLOWING)
def test_a_vector_spread_over_an_image_loses_channels(name: str) -> None:
    net = Decoder(FOLLOWING[name])
    assert prune_once(net, torch.randn(2, 6)).widths == {"first.weight": (16, 8), "up.weight": (8, 4)}
    assert net.first.out_features == 8 * 4 * 4
    assert net.channels == (8 if name == "attributes" else 16)
    assert net(torch.randn(2, 6)).shape == (2, 3, 8, 8)


def test_a_bundle_fails_as_a_whole() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dim = 8
            self.first, self.other, self.free = (nn.Linear(5, 8) for _ in range(3))
            self.second, self.third, self.fourth = (nn.Linear(8, 3) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.first(x).view(-1, self.dim), self.other(x).view(-1, self.dim)
            if int(self.other.weight.shape[0]) < 8:
                raise RuntimeError("the other is too narrow")
            return self.second(a) + self.third(b) + self.fourth(self.free(x))

    net, x = Tied().eval(), torch.randn(2, 5)
    coupling = find_coupling(net, Example.of(x))
    assert [dict(bundle.quantum) for bundle in coupling.bundles] == [{"first.weight": 1, "other.weight": 1}]
    gone = torch.arange(8) < 3
    found = try_widths(net, Example.of(x), coupling, {name: gone for name in coupling.groups})
    assert set(found.failing) == {"first.weight", "other.weight"}
    report = prune_once(net, x)
    assert report.widths == {"free.weight": (8, 4)}
    assert net.dim == 8


def test_scalars_of_the_smaller_network_are_returned() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.second(h * h.shape[-1] ** -0.5 * 0.25)

    net, example = Scaled().eval(), Example.of(torch.randn(2, 5))
    coupling = find_coupling(net, example)
    assert [s.value for s in coupling.scalars] == pytest.approx([8**-0.5, 0.25])
    found = try_widths(net, example, coupling, {"first.weight": torch.arange(8) < 4})
    assert found.scalars[:2] == pytest.approx((4**-0.5, 0.25))
