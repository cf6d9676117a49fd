"""Small spaces with costs known by hand, and strategies that make others."""

import torch
from hypothesis import strategies as st
from torch import nn

from helpers.bundled import by_hand, space_of
from lightning_prune.budgets import Budget, Count, MACs, Params, Ratio, Sparsity
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.dense_reference import DenseReference
from lightning_prune.budgets.spaces.weight_space import WeightSpace
from lightning_prune.coupling import Coupling, find_coupling
from lightning_prune.network.example_input import Example

A, B = "0.weight", "2.weight"
SCORES = {A: torch.tensor([0.1, 0.9, 0.5, 0.3]), B: torch.tensor([0.2, 0.8, 0.4, 0.6, 1.0, 0.0])}
_couplings: dict[tuple[int, int], Coupling] = {}


def chain(a: int, b: int) -> Coupling:
    """3 inputs, a and b hidden units, 2 outputs: 4a + ab + 3b + 2 parameters, 3a + ab + 2b MACs."""
    if (a, b) not in _couplings:
        net = nn.Sequential(nn.Linear(3, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 2))
        _couplings[a, b] = find_coupling(net, Example.of(torch.zeros(2, 3)))
    return _couplings[a, b]


def params(a: int, b: int) -> int:
    return 4 * a + a * b + 3 * b + 2


def macs(a: int, b: int) -> int:
    return 3 * a + a * b + 2 * b


def make_space(scores: dict[str, torch.Tensor] = SCORES, round_to: int = 1) -> ChannelSpace:
    coupling = chain(len(scores[A]), len(scores[B]))
    return ChannelSpace(coupling, scores, DenseReference.of(coupling), round_to)


def kept(budget: Budget, fraction: float = 1.0, round_to: int = 1) -> tuple[int, int]:
    result = budget.keep_units(make_space(round_to=round_to), fraction)
    return result[A], result[B]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    scores = st.integers(0, 5) if draw(st.booleans()) else st.floats(0, 1, width=32)  # with many ties, and with few
    return {
        A: torch.tensor(draw(st.lists(scores, min_size=2, max_size=7)), dtype=torch.float),
        B: torch.tensor(draw(st.lists(scores, min_size=2, max_size=7)), dtype=torch.float),
    }


shares = st.floats(0, 1)
budgets = st.one_of(
    st.builds(Ratio, shares, st.booleans()),
    st.builds(Sparsity, shares, st.booleans()),
    st.builds(Params, shares, st.booleans()),
    st.builds(MACs, shares, st.booleans()),
    st.builds(Count, st.integers(1, 10), st.booleans()),
)


def weights(masked: tuple[int, int] = (0, 0)) -> WeightSpace:
    return WeightSpace(sizes={"a": 10, "b": 4}, masked={"a": masked[0], "b": masked[1]})


# ---- bundles: "stream" gives 2 of its 8 units a step, "heads" 1 of its 4; "free" is by itself

TIED = {"stream": 2, "heads": 1}
BUNDLED = {
    "stream": [0.1, 0.1, 0.4, 0.4, 0.7, 0.7, 1.0, 1.0],
    "free": [0.05, 0.35, 0.65, 2.0],
    "heads": [0.1, 0.4, 0.7, 1.0],
}  # .05 f, .1 b, .35 f, .4 b, .65 f, .7 b; parameters 48, MACs 256


def bundled(**settings) -> ChannelSpace:
    return space_of(by_hand({"stream": 8, "free": 4, "heads": 4}, (TIED,)), BUNDLED, **settings)


def steps(bundle: int, free: int) -> dict[str, int]:
    return {"stream": 2 * bundle, "free": free, "heads": bundle}


@st.composite
def spaces(draw: st.DrawFn) -> ChannelSpace:
    """Up to three groups by themselves, up to two bundles, ties, and everything that widths can be asked for."""
    sizes: dict[str, int] = {}
    bundles = []
    for number in range(draw(st.integers(0, 3))):
        sizes[f"free{number}"] = draw(st.integers(1, 12))
    for number in range(draw(st.integers(0 if sizes else 1, 2))):
        quanta = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        bundles.append({f"bundle{number}.{place}": quantum for place, quantum in enumerate(quanta)})
        among = draw(st.integers(1, 10))
        sizes |= {name: quantum * among for name, quantum in bundles[-1].items()}
    names = draw(st.permutations(list(sizes)))
    channels = {name: draw(st.integers(1, 4)) for name in names}
    least = {name: draw(st.sampled_from([1, 1, 2])) for name in names}
    coupling = by_hand({name: sizes[name] for name in names}, tuple(bundles), channels, least)
    reference = DenseReference.of(coupling, classes={name: draw(st.sampled_from("xy")) for name in names})
    for bundle in bundles:
        reference.classes.update(dict.fromkeys(bundle, reference.classes[next(iter(bundle))]))
    scores = {name: draw(st.lists(st.integers(0, 4), min_size=sizes[name], max_size=sizes[name])) for name in names}
    return space_of(
        coupling, scores, reference,
        round_to=draw(st.integers(1, 9)),
        min_width=draw(st.integers(1, 6)),
        ranking=draw(st.sampled_from(["global", "isomorphic"])),
    )  # fmt: skip
