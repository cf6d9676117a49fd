"""Implementations found in libraries of networks, reduced to small networks."""

import copy
import time
from typing import Any

import pytest
import torch
from helpers import user_nets_wild as nets
from helpers.coupling_nets import Net, error_between, groups_of, image, removal_error
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.coupling import find_coupling
from lightning_prune.functional import prune_once
from lightning_prune.network.example_input import Example, run_on_copy
from lightning_prune.surgery.apply import zero_removed

FOUND = {
    "convolutional LSTM": (nets.ConvLSTM, (2, 3, 3, 4, 4), {"gates.weight": 8}),
    "first states of zeros": (nets.StateOfZeros, (2, 5, 3), {"rnn.weight_ih_l0": 8}),
    "written into a corner": (nets.Corner, (2, 3, 8, 8), {"a.weight": 8}),
    "quantiser": (nets.Quantiser, (4, 3), {"a.weight": 8}),
}


@pytest.mark.parametrize("name", FOUND)
def test_groups_are_found_and_removing_equals_masking(name: str) -> None:
    make, shape, units = FOUND[name]
    net, inputs = make().double(), image(*shape).double()
    coupling = find_coupling(net, Example.of(inputs))
    assert {group: found.size for group, found in coupling.groups.items()} == units
    assert all(group.inexact is None for group in coupling.groups.values())
    assert removal_error(net, inputs) <= 1e-10


def test_standardised_weights() -> None:
    net = nn.Sequential(nets.Standardised(3, 8, 3), nets.Standardised(8, 6, 3), nn.Conv2d(6, 2, 1)).double()
    report = prune_once(net, image(2, 3, 8, 8).double())
    assert report.widths == {"0.weight": (8, 4), "1.weight": (6, 3)}
    assert list(report.inexact) == ["0.weight"]  # the mean of what reads it runs over its channels
    assert net(image(2, 3, 8, 8).double()).shape == (2, 2, 8, 8)


def test_experts_in_one_weight() -> None:
    coupling = find_coupling(nets.Experts(), Example.of(image(8, 3)))
    assert groups_of(coupling) == {
        "up": (16, {("a.weight", 0): 1, ("a.bias", 0): 1, ("up", 1): 1}),
        "up#2": (16, {("up", 2): 1, ("down", 1): 1}),
        "down": (16, {("down", 2): 1, ("out.weight", 1): 1}),
    }
    assert coupling.frozen == {"out.weight": "output of the network"}
    net, inputs = nets.Experts(), image(8, 3)
    masked = copy.deepcopy(net)
    zero_removed(masked, prune_once(net, inputs).plan)  # half: a grouped product wants rows of 16 bytes
    assert net.up.shape == net.down.shape == (2, 8, 8)
    with torch.no_grad():
        assert error_between(net(inputs), masked(inputs)) <= 1e-5


def test_a_channel_written_into_a_part_of_a_constant_is_frozen() -> None:
    coupling = find_coupling(nets.FirstChannels(), Example.of(image()))
    assert coupling.groups == {}
    assert coupling.frozen["a.weight"] == "forward writes it into a part of a tensor whose size cannot shrink"


def test_fused_attention_is_followed_on_a_real_pass() -> None:
    net, inputs = nets.ReadingAttention().double(), image(2, 4, 3).double()
    coupling = find_coupling(net, Example.of(inputs))
    assert not coupling.on_meta
    assert {"a.weight", "qkv.weight"} <= set(coupling.groups)
    assert not any("no rule" in reason for reason in coupling.frozen.values())
    assert removal_error(net, inputs) <= 1e-10


@pytest.mark.parametrize("ones", [False, True])
def test_a_first_state_that_is_not_zero_makes_a_sum_over_the_units_inexact(ones: bool) -> None:
    make = torch.ones if ones else torch.zeros

    def run(net: Any, x: Tensor) -> Tensor:
        y, _ = net.rnn(x, make(1, len(x), net.rnn.hidden_size, dtype=x.dtype, device=x.device))
        return net.fc(y[:, -1]) * y[:, -1].sum(1, keepdim=True)

    net = Net(run, rnn=nn.GRU(3, 8, batch_first=True), fc=nn.Linear(8, 2)).double()
    group = find_coupling(net, Example.of(image(2, 4, 3).double())).groups["rnn.weight_ih_l0"]
    assert (group.inexact is not None) == ones
    if not ones:
        assert removal_error(net, image(2, 4, 3).double()) <= 1e-10


class Counting(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"batch_first": True, "bidirectional": True}])
def test_a_recurrent_layer_is_one_operation_on_the_meta_device(kind: Any, options: dict[str, bool]) -> None:
    net = Net(lambda net, x: net.rnn(x), rnn=kind(3, 4, num_layers=2, **options))
    sequence = image(300, 2, 3)

    def run(copy: nn.Module, example: Example) -> tuple[int, Any]:
        with Counting() as counting:
            out = example.run(copy)
        return counting.count, out

    count, (output, last) = run_on_copy(net, Example((sequence,), {}, 1), run, on_meta=True)
    assert count < 50
    expected, states = net(sequence)
    assert output.shape == expected.shape
    pairs = zip(last, states, strict=True) if kind is nn.LSTM else [(last, states)]
    assert all(found.shape == due.shape for found, due in pairs)


def test_a_recurrent_layer_of_wrong_sizes_still_fails_on_the_meta_device() -> None:
    net = Net(lambda net, x: net.rnn(x), rnn=nn.LSTM(3, 4))
    net.rnn.weight_hh_l0 = nn.Parameter(torch.zeros(16, 5))
    with pytest.raises(RuntimeError):
        run_on_copy(net, Example((image(5, 2, 3),), {}, 1), lambda copy, example: example.run(copy), on_meta=True)


def test_a_long_sequence_takes_no_longer_than_a_short_one() -> None:
    net = Net(lambda net, x: net.fc(net.rnn(x)[0]), rnn=nn.LSTM(3, 4, 2, bidirectional=True), fc=nn.Linear(8, 2))
    find_coupling(net, Example.of(image(2, 4, 3)))
    start = time.perf_counter()
    find_coupling(net, Example.of(image(3000, 2, 3)))
    assert time.perf_counter() - start < 5


def test_experts_that_only_some_examples_visit() -> None:
    """Values decide which layers are used: all examples that were given are run."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 3)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8)) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            chosen, h = x.argmax(-1), self.inner(x)
            y = torch.zeros_like(h)
            for number, expert in enumerate(self.experts):
                rows = (chosen == number).nonzero().squeeze(1)
                if rows.numel():
                    y = y.index_add(0, rows, expert(h[rows]))
            return self.outer(y)

    net, inputs = Routed().double(), torch.eye(4, dtype=torch.float64)
    masked = copy.deepcopy(net)
    report = prune_once(net, inputs)
    zero_removed(masked, report.plan)
    assert {name: after for name, (_, after) in report.widths.items()} == {
        "inner.weight": 4, **{f"experts.{n}.0.weight": 3 for n in range(4)},
    }  # fmt: skip
    assert error_between(net(inputs), masked(inputs)) <= 1e-10


def test_a_code_path_that_depends_on_values_and_a_width_is_reported_as_inexact() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        if x.abs().max().item() > 1e6:  # no network for the meta device
            x = x / 2
        h = net.a(x).relu()
        return net.o(net.b(h) if h.shape[1] > 10 else h)

    net = Net(run, a=nn.Linear(3, 16), b=nn.Linear(16, 16), o=nn.Linear(16, 2))
    report = prune_once(net, image(4, 3))
    assert set(report.inexact.values()) == {"with fewer channels the forward pass follows a different code path"}


def test_a_code_path_that_depends_on_values_leaves_the_other_groups_exact() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.a(x).relu()
        for _ in range(int((h.abs().sum(1) > 0).sum())):
            h = -h
        return net.o(net.b(h))

    net = Net(run, a=nn.Linear(3, 16), b=nn.Linear(16, 16), o=nn.Linear(16, 2)).double()
    report = prune_once(net, image(4, 3).double())
    assert report.inexact == {}
    assert len(report.widths) == 2


def test_distributions_that_check_their_arguments() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.inner(x).relu()
        normal = torch.distributions.Normal(net.mean(h), net.scale(h).exp(), validate_args=True)
        return net.outer(normal.mean * normal.stddev)

    layers = {"inner": nn.Linear(4, 8), "mean": nn.Linear(8, 6), "scale": nn.Linear(8, 6), "outer": nn.Linear(6, 2)}
    net, inputs = Net(run, **layers).double(), image(3, 4).double()
    masked = copy.deepcopy(net)
    report = prune_once(net, inputs)
    zero_removed(masked, report.plan)
    assert {name: after for name, (_, after) in report.widths.items()} == {"inner.weight": 4, "mean.weight": 3}
    assert error_between(net(inputs), masked(inputs)) <= 1e-10
