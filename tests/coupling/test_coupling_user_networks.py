"""Typical user networks: half of every removable group is removed, and the result equals masking."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import user_nets as nets
from helpers.coupling_nets import error_between, image, randomise
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_prune.coupling import find_coupling
from lightning_prune.functional import prune_once
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import tensors_in
from lightning_prune.surgery.apply import zero_removed
from lightning_prune.surgery.plan import Plan


@dataclass(frozen=True)
class Case:
    """A network, its groups with their units, found by hand, and what its forward receives."""

    make: Callable[[], nn.Module]
    units: dict[str, int]
    inputs: Callable[[], Any] = image


def tokens() -> Tensor:
    return torch.arange(8).reshape(2, 4)


U_NET = {
    "down1.0.weight": 4, "down2.0.weight": 6, "bottom.0.weight": 8, "up2.weight": 6, "up1.weight": 6,
    "up1.weight#2": 4, "merge1.0.weight": 4,
}  # fmt: skip
CASES = {
    "concats": Case(
        nets.DenseBlock, {"stem.weight": 6, "layers.0.weight": 4, "layers.1.weight": 4, "layers.2.weight": 4}
    ),
    "shuffle": Case(nets.ShuffleUnit, {"branch.weight": 4, "branch.weight#2": 4}),
    "squeeze-excite": Case(nets.SqueezeExcite, {"conv.weight": 8, "gate.0.weight": 4}),
    "glu": Case(nets.GatedConvs, {"first.weight": 6, "second.weight": 4}, lambda: image(2, 3, 8)),
    "swiglu": Case(lambda: nets.SwiGLU(False), {"up.weight": 8}, lambda: image(2, 4, 6)),
    "swiglu fused": Case(lambda: nets.SwiGLU(True), {"up.weight": 8}, lambda: image(2, 4, 6)),
    "raw scales": Case(nets.Scales, {"gamma": 8}),
    "tied gru": Case(nets.LanguageModel, {"positions": 6}, tokens),
    "siamese": Case(nets.Siamese, {"tower.0.weight": 6, "tower.3.weight": 4}, lambda: (image(), image(seed=1))),
    "u-net 1-D": Case(lambda: nets.UNet(1), U_NET, lambda: image(2, 2, 8)),
    "u-net 2-D": Case(lambda: nets.UNet(2), U_NET, lambda: image(2, 2, 8, 8)),
    "u-net 3-D": Case(lambda: nets.UNet(3), U_NET, lambda: image(2, 2, 8, 8, 8)),
    "pixel shuffle": Case(nets.SuperResolution, {"a.weight": 6, "up.weight": 4}),
    "temporal": Case(nets.TemporalConvs, {"a.weight": 6, "b.weight": 4}, lambda: image(2, 2, 9)),
    "tagger": Case(
        nets.Tagger, {"words.weight": 6, "shapes.weight": 4, "rnn.weight_ih_l0": 5}, lambda: (tokens(), tokens() % 3)
    ),
    "text reader": Case(nets.TextReader, {"conv.0.weight": 4, "rnn.weight_ih_l0": 6}, lambda: image(2, 1, 8, 8)),
    "bag of words": Case(nets.BagOfWords, {"bag.weight": 6, "a.weight": 8}, tokens),
    "einsum": Case(nets.Einsums, {"mix": 8, "mix#2": 6}),
    "signature": Case(
        nets.Signature,
        {"a.weight": 6},
        lambda: {"batch": {"image": image(), "extra": [image(2, 4)], "id": "one"}, "scale": 0.5, "names": ["a", "b"]},
    ),
    "pyramid": Case(
        nets.Pyramid,
        {"a.weight": 4, "b.weight": 6, "lateral.0.weight": 8},
        lambda: [image(3, 16, 12), image(3, 12, 16, seed=1)],
    ),
    "deformable": Case(nets.Deformable, {"a.weight": 6, "deform.weight": 4}),
    **{
        f"{kind.__name__}, {layers} layers": Case(
            lambda kind=kind, layers=layers: nets.LastState(kind, layers),
            {"rnn.weight_ih_l0": 6},
            lambda: image(2, 4, 3),
        )
        for kind in (nn.LSTM, nn.GRU, nn.RNN)
        for layers in (1, 2)
    },
    **{
        f"{cell.__name__} in a loop": Case(
            lambda cell=cell: nets.Decoder(cell), {"cell.weight_ih": 6}, lambda: image(2, 4, 3)
        )
        for cell in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
    },
}


def as_dtype(inputs: Any, dtype: torch.dtype) -> Any:
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)


def half(units: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {name: (count, (count + 1) // 2) for name, count in units.items()}


def check(net: nn.Module, inputs: Any, units: dict[str, int], tolerance: float) -> Any:
    """Remove half of every group; the network must compute what it does with these channels masked."""
    randomise(net).eval()
    example = Example.of(inputs)
    masked = copy.deepcopy(net)
    with torch.no_grad():
        before = [tensor.shape for tensor in tensors_in(example.run(net))]
    report = prune_once(net, inputs)
    assert report.widths == half(units)
    zero_removed(masked, report.plan)
    with torch.no_grad():
        found, expected = example.run(net), example.run(masked)
    assert [tensor.shape for tensor in tensors_in(found)] == before
    assert error_between(found, expected) <= tolerance
    return report


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_half_of_every_group_removed_equals_masked(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    net, inputs = case.make().to(dtype), as_dtype(case.inputs(), dtype)
    report = check(net, inputs, case.units, 1e-5 if dtype == torch.float32 else 1e-10)
    assert report.inexact == {}
    assert {parameter.dtype for parameter in net.parameters()} == {dtype}
    net.train()
    sum(tensor.square().mean() for tensor in tensors_in(Example.of(inputs).run(net))).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_weight_norm_is_removed_with_its_length() -> None:
    # Masking a direction and its length gives 0 / 0: the reader is masked instead.
    net, inputs = nets.Normed().eval(), image(2, 2, 9)
    masked = copy.deepcopy(net)
    report = prune_once(net, inputs)
    assert list(report.widths.values()) == [(6, 3)]
    kept = report.plan.keep["b.weight"][1].tolist()
    with torch.no_grad():
        masked.b.weight[:, [c for c in range(6) if c not in kept]] = 0
        assert error_between(net(inputs), masked(inputs)) <= 1e-5
    assert net.a.parametrizations.weight.original0.shape == (3, 1, 1)


def test_recurrent_layers_have_their_new_sizes() -> None:
    net = nets.Tagger()
    net.rnn = nn.LSTM(10, 8, 2, bidirectional=True, proj_size=4, batch_first=True)
    net.fc = nn.Linear(8, 3)
    units = {"words.weight": 6, "shapes.weight": 4, "rnn.weight_ih_l0": 8, "rnn.weight_hh_l0": 4}
    check(net, (tokens(), tokens() % 3), units, 1e-5)
    assert (net.rnn.input_size, net.rnn.hidden_size, net.rnn.proj_size) == (5, 4, 2)
    assert net.rnn.weight_hr_l1_reverse.shape == (2, 4)
    for cell in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
        net = nets.Decoder(cell)
        prune_once(net, image(2, 4, 3))
        assert (net.cell.input_size, net.cell.hidden_size, net.hidden) == (3, 3, 3)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_on_a_real_pass(kind: Any) -> None:
    class Reading(nets.Tagger):
        def forward(self, words: Tensor, shapes: Tensor) -> Tensor:
            return super().forward(words, shapes) if int(words.sum()) > 0 else words

    net = Reading()
    net.rnn = kind(10, 5, num_layers=2, bidirectional=True, batch_first=True)
    inputs = tokens(), tokens() % 3
    coupling = find_coupling(net, Example.of(inputs))
    assert not coupling.on_meta
    gates = 4 if kind is nn.LSTM else 3
    index = {(m.tensor, m.dim): m.index.tolist() for m in coupling.groups["rnn.weight_ih_l0"].members}
    assert len(index) == 4 * 5 + 2 + 1  # of each layer and direction; what the second layer and the head read
    assert index["rnn.weight_hh_l1", 0][1] == [1 + 5 * gate for gate in range(gates)]
    assert index["rnn.weight_ih_l1_reverse", 1][1] == [1, 6]
    check(net, inputs, {"words.weight": 6, "shapes.weight": 4, "rnn.weight_ih_l0": 5}, 1e-5)


def test_a_hidden_state_given_from_outside_keeps_its_size() -> None:
    class Continued(nets.LastState):
        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return self.fc(self.rnn(x, state)[0])

    net = Continued(nn.GRU)
    coupling = find_coupling(net, Example.of((image(2, 4, 3), image(1, 2, 6))))
    assert coupling.groups == {}
    assert "rnn.weight_ih_l0" in coupling.frozen


def test_block_attention_sees_maximum_and_mean() -> None:
    net = nets.BlockAttention()
    report = prune_once(net, image())
    assert report.widths == {"a.weight": (8, 4)}
    assert set(report.inexact) == {"a.weight"}


def test_uneven_split() -> None:
    net = nets.UnevenSplit()
    report = prune_once(net, image())
    assert report.widths == {"b.weight": (4, 2)}
    assert report.frozen["a.weight"] == "forward splits into (2, 6), written as numbers"
    assert net(image()).shape == (2, 2)


def test_multi_query_attention() -> None:
    net = randomise(nets.MultiQueryAttention()).eval()
    report = prune_once(net, image(2, 4, 5))
    assert report.widths["embed.weight"] == (16, 8)
    assert {"q.weight", "kv.weight"} & set(report.widths)
    assert net(image(2, 4, 5)).shape == (2, 3)


def conv_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 2, 1))


UNITS = {"0.weight": 8, "3.weight": 6}


def test_a_partly_frozen_network_stays_partly_frozen() -> None:
    net = conv_net()
    net[0].requires_grad_(False)
    check(net, image(), UNITS, 1e-5)
    assert [parameter.requires_grad for parameter in net.parameters()] == [False] * 2 + [True] * 6


def test_hooks_run_and_stay() -> None:
    net, seen = conv_net(), []
    net[0].register_forward_hook(lambda module, inputs, output: output * 0.5)
    net[3].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    check(net, image(), UNITS, 1e-5)
    net(image())
    assert seen[-1] == 4


def test_under_compile() -> None:
    net = randomise(conv_net()).eval()
    compiled = torch.compile(net, backend="eager")
    masked = copy.deepcopy(net)
    compiled(image())
    report = prune_once(compiled, image())
    assert report.widths == {f"_orig_mod.{name}": width for name, width in half(UNITS).items()}
    zero_removed(masked, Plan({name.removeprefix("_orig_mod."): keep for name, keep in report.plan.keep.items()}))
    with torch.no_grad():
        assert error_between(compiled(image()), masked(image())) <= 1e-5


def test_lazy_modules_are_refused_by_name_until_they_have_run() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"'1.weight' is lazy and has no shape yet; run one batch through"):
        prune_once(net, image())
    net(image())
    assert prune_once(net, image()).widths == {"0.weight": (4, 2)}
