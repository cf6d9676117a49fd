"""Recurrent layers: all that they return, example by example, against the gradient of gates."""

import gc
import itertools
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lightning_prune import Channels, prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.coupling import Group, find_coupling
from lightning_prune.criteria import MeanActivation, Taylor
from lightning_prune.criteria.statistics import AbsoluteActivations, ActivationGradient
from lightning_prune.criteria.statistics.recurrent_layers import parts_of, sequence_in
from lightning_prune.network.example_input import Example

EXAMPLES, STEPS, INPUTS, UNITS = 5, 4, 3, 6
LENGTHS = torch.tensor([2, 4, 1, 3, 4])
KINDS = (nn.LSTM, nn.GRU, nn.RNN)
CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


class Reader(nn.Module):
    """Reads all steps and the last states; multiplies what the layer returns by ``gates`` where they are given."""

    def __init__(self, kind: Any, packed: bool = False, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(INPUTS, UNITS, **options)
        self.packed, self.gates = packed, None
        self.first = nn.Linear(UNITS * (2 if options.get("bidirectional") else 1), 3)
        self.last = nn.Linear(UNITS, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        batch_first = self.rnn.batch_first
        given: Any = inputs
        if self.packed:
            given = pack_padded_sequence(inputs, LENGTHS, batch_first=batch_first, enforce_sorted=False)
        sequence, states = self.rnn(given)
        if self.packed:
            sequence, _ = pad_packed_sequence(sequence, batch_first=batch_first)
        states = states if isinstance(states, tuple) else (states,)
        if self.gates is not None:  # (examples, columns)
            sequence = sequence * self.gates.unsqueeze(1 if batch_first else 0)
            by_direction = self.gates.view(EXAMPLES, -1, UNITS).movedim(1, 0)
            states = [state * by_direction.repeat(len(state) // len(by_direction), 1, 1) for state in states]
        steps = sequence.movedim(0, 1) if batch_first else sequence
        weights = torch.linspace(1, 2, len(steps))[:, None, None]
        return (weights * self.first(steps)).sum(0) + sum(self.last(state).tanh().sum(0) for state in states)


def groups_of(net: nn.Module, inputs: Tensor) -> list[Group]:
    return list(find_coupling(net, Example.of(inputs)).groups.values())


def gathered(statistics: Any, net: nn.Module, inputs: Tensor) -> Tensor:
    statistics.attach(net, groups_of(net, inputs))
    statistics.begin_step(0)
    net(inputs).square().sum().backward()
    statistics.commit()
    statistics.detach()
    assert statistics.unseen() == []
    return statistics.totals["rnn"]


def inputs_for(batch_first: bool) -> Tensor:
    torch.manual_seed(1)
    return torch.randn((EXAMPLES, STEPS, INPUTS) if batch_first else (STEPS, EXAMPLES, INPUTS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize(("packed", "batch_first"), [*itertools.product((False, True), repeat=2)])
def test_sums_are_those_of_gates(kind: Any, layers: int, bidirectional: bool, packed: bool, batch_first: bool) -> None:
    torch.manual_seed(0)
    net = Reader(kind, packed, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first)
    inputs = inputs_for(batch_first)
    found = gathered(ActivationGradient(), net, inputs)
    gates = torch.ones(EXAMPLES, len(found), requires_grad=True)
    net.gates = gates
    net(inputs).square().sum().backward()
    assert gates.grad is not None
    steps = LENGTHS[:, None] if packed else STEPS
    torch.testing.assert_close(found, (gates.grad / steps).abs().sum(0))


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_is_seen_in_every_step(kind: Any) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = kind(INPUTS, UNITS), nn.Linear(UNITS, 2)
            self.returned: list[Any] = []

        def forward(self, inputs: Tensor) -> Tensor:
            state: Any = None
            for step in inputs:
                state = self.rnn(step, state)
                self.returned.append(state if isinstance(state, tuple) else (state,))
            return self.head(self.returned[-1][0])

    torch.manual_seed(0)
    net, inputs = Steps(), inputs_for(batch_first=False)
    found = gathered(ActivationGradient(), net, inputs)
    net.returned = []
    loss = net(inputs).square().sum()
    wanted = torch.zeros(UNITS)
    for tensors in net.returned:
        gradients = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
        pairs = zip(tensors, gradients, strict=True)
        wanted += sum(t.detach() * g for t, g in pairs if g is not None).abs().sum(0)
    torch.testing.assert_close(found, wanted)


def test_one_example_without_a_batch() -> None:
    torch.manual_seed(0)
    net = Reader(nn.LSTM)
    inputs = inputs_for(batch_first=False)[:, 0]
    output = net.rnn(inputs)
    pairs = [(tensor, sums(tensor.detach())) for tensor, sums in parts_of(net.rnn, output)]
    assert [rows.shape for _, rows in pairs] == [(1, UNITS)] * 3
    torch.testing.assert_close(pairs[0][1][0], output[0].detach().mean(0))
    torch.testing.assert_close(pairs[2][1], output[1][1].detach() / STEPS)


def test_padding_is_not_an_activation() -> None:
    torch.manual_seed(0)
    net, inputs = Reader(nn.GRU, packed=True), inputs_for(batch_first=False)
    found = gathered(AbsoluteActivations(), net, inputs)
    packed = net.rnn(pack_padded_sequence(inputs, LENGTHS, enforce_sorted=False))[0]
    assert isinstance(packed, PackedSequence)
    assert sequence_in((packed, None)) is packed.data
    torch.testing.assert_close(found, packed.data.detach().abs().sum(0))


def test_a_kept_graph_may_be_used_again() -> None:
    torch.manual_seed(0)
    net, inputs = Reader(nn.LSTM), inputs_for(batch_first=False)
    statistics = ActivationGradient()
    statistics.attach(net, groups_of(net, inputs))
    statistics.begin_step(0)
    loss = net(inputs).square().sum()
    loss.backward(retain_graph=True)
    statistics.commit()
    once = statistics.totals["rnn"].clone()
    loss.backward()
    statistics.commit()
    torch.testing.assert_close(statistics.totals["rnn"], 2 * once)


def test_what_a_layer_returned_is_let_go() -> None:
    net, inputs = Reader(nn.LSTM, packed=True), inputs_for(batch_first=False)
    statistics = ActivationGradient()
    statistics.attach(net, groups_of(net, inputs))
    seen: list[Any] = []
    net.rnn.register_forward_hook(lambda layer, given, output: seen.append(weakref.ref(output[0].data)))
    gc.collect()
    gc.disable()
    try:
        statistics.begin_step(0)
        net(inputs).sum().backward()
        statistics.commit()
        assert [reference() for reference in seen] == [None]
    finally:
        gc.enable()
    assert statistics.parts == {}


@pytest.mark.parametrize("criterion", [Taylor(), MeanActivation()])
def test_units_of_both_directions_are_ranked(criterion: Any) -> None:
    torch.manual_seed(0)
    net, inputs = Reader(nn.LSTM, packed=True, num_layers=2, bidirectional=True), inputs_for(batch_first=False)
    with torch.no_grad():
        for name, weight in net.rnn.named_parameters():  # of unit 4 almost nothing is left
            if "_hh" in name or "_ih" in name:
                weight.view(4, UNITS, -1)[:, 4] *= 1e-3

    def calibrate(copy: nn.Module) -> None:
        copy(inputs).square().sum().backward()

    prune_once(net, inputs, criterion=criterion, granularity=Channels(), budget=Ratio(1 / 6), calibrate=calibrate)
    assert net.rnn.hidden_size == UNITS - 1
    assert bool((net.rnn.weight_hh_l0.view(4, UNITS - 1, -1).abs().amax((0, 2)) > 0.05).all())
    assert net(inputs).shape == (EXAMPLES, 3)


class Alone(nn.LSTM):
    """Returns its sequence alone."""

    def forward(self, inputs: Tensor, state: Any = None) -> Any:
        return super().forward(inputs, state)[0]


class Projected(nn.LSTM):
    """A projected one of which the cell state is used."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, proj_size=3)


@pytest.mark.parametrize("kind", [Alone, Projected])
def test_other_results_are_left_alone(kind: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.first = kind(INPUTS, UNITS), nn.Linear(INPUTS, INPUTS)
            self.head = nn.LazyLinear(2)

        def forward(self, inputs: Tensor) -> Tensor:
            found = self.rnn(self.first(inputs))
            return self.head(found if isinstance(found, Tensor) else found[1][1])

    torch.manual_seed(0)
    net, inputs = Net(), inputs_for(batch_first=False)
    net(inputs)
    statistics = ActivationGradient()
    statistics.attach(net, groups_of(net, inputs))
    statistics.begin_step(0)
    net(inputs).sum().backward()
    statistics.commit()
    assert set(statistics.totals) == {"first"}
    assert statistics.unseen() == []
