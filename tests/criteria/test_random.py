import itertools

import pytest
import torch
from torch import nn

from lightning_prune.coupling import find_coupling
from lightning_prune.criteria import Random, Scoring
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import named_tensors


def network(width: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))


def weights(seed: int = 0, event: int = 0, name: str = "0.weight", net: nn.Module | None = None) -> torch.Tensor:
    net = net or network()
    return Random(seed).score_weights(name, Scoring(net, dict(named_tensors(net)), event=event))


def units(seed: int = 0, event: int = 0, name: str = "0.weight") -> torch.Tensor:
    net = network()
    coupling = find_coupling(net, Example.of(torch.zeros(2, 4)))
    return Random(seed).score_units(coupling.groups[name], Scoring(net, dict(named_tensors(net)), event=event))


def test_draws_depend_on_seed_event_and_name_only() -> None:
    torch.manual_seed(1)
    first = weights()
    torch.manual_seed(2)  # neither the global generator nor the values of the network matter
    assert torch.equal(weights(), first)
    assert torch.equal(units(), units())
    draws = [
        weights(seed, event, name)[:2, :2]
        for seed, event, name in itertools.product((0, 1), (0, 1, 2), ("0.weight", "2.weight"))
    ]
    for one, other in itertools.combinations(draws, 2):
        assert not torch.equal(one, other)


def test_units_of_other_events_and_groups_get_other_draws() -> None:
    draws = [units(0, 0), units(0, 1), units(1, 0), units(0, 0, "2.weight")]
    for one, other in itertools.combinations(draws, 2):
        assert not torch.equal(one, other)


def test_the_global_generator_is_left_alone() -> None:
    net = network()
    state = torch.get_rng_state()
    weights(net=net)
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_are_uniform() -> None:
    net = network(400)
    values = weights(name="2.weight", net=net).flatten()
    assert values.min() >= 0
    assert values.max() < 1
    share = torch.histc(values, 10, 0, 1) / len(values)
    assert (share - 0.1).abs().max() < 0.004  # five standard deviations of 160 000 draws


@pytest.mark.parametrize("seed", ["a", 1.5, True, None], ids=repr)
def test_the_seed_is_a_whole_number(seed: object) -> None:
    with pytest.raises(ValueError, match=f"^Random seed={seed!r} must be an integer$"):
        Random(seed=seed)
