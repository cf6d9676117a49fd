"""MagnitudeIncrease against numbers that can be followed by hand."""

from dataclasses import replace

import pytest
import torch
from helpers.gathering import X, by_hand
from torch import nn

from lightning_prune import Weights, prune_once
from lightning_prune.budgets import Sparsity
from lightning_prune.coupling import Group, find_coupling
from lightning_prune.criteria import CannotScoreError, MagnitudeIncrease, Scoring
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import named_tensors

# from ((1, 2), (3, -1)), (1, 0) and (2, -1)
AFTER = {"0.weight": [[-1.0, 5.0], [3.5, 0.0]], "0.bias": [7.0, 7.0], "1.weight": [[-1.0, -2.0]]}
INCREASE = {"0.weight": [[0, 3], [0.5, -1]], "1.weight": [[-1, 1]]}
DISTANCE = {"0.weight": [[2, 3], [0.5, 1]], "1.weight": [[3, 1]]}
UNITS = {  # biases do not count
    MagnitudeIncrease(): {"sum": [2, 0.5], "mean": [1, 0.25], "max": [3, 1], "first": [3, -0.5]},
    MagnitudeIncrease(distance=True): {"sum": [8, 2.5], "mean": [4, 1.25], "max": [5, 1.5], "first": [5, 1.5]},
}
EACH = pytest.mark.parametrize("criterion", list(UNITS), ids=repr)


def trained(net: nn.Module) -> None:
    with torch.no_grad():
        for name, values in AFTER.items():
            net.get_parameter(name).copy_(torch.tensor(values))


def scored(criterion: MagnitudeIncrease, train: bool = True) -> tuple[Scoring, Group]:
    net = by_hand()
    groups = find_coupling(net, Example.of(X)).groups
    statistics = criterion.statistics()
    statistics.attach(net, groups.values(), [name for name, _ in net.named_parameters()])
    if train:
        trained(net)
    return Scoring(net, dict(named_tensors(net)), statistics.totals), groups["0.weight"]


@EACH
def test_weights_by_hand(criterion: MagnitudeIncrease) -> None:
    scoring, _ = scored(criterion)
    for name, expected in (DISTANCE if criterion.distance else INCREASE).items():
        assert criterion.score_weights(name, scoring).tolist() == expected


@EACH
@pytest.mark.parametrize("how", ["sum", "mean", "max", "first"])
def test_units_by_hand(criterion: MagnitudeIncrease, how: str) -> None:
    scoring, group = scored(criterion)
    expected = torch.tensor(UNITS[criterion][how], dtype=torch.float32)
    found = criterion.score_units(group, replace(scoring, aggregate=how))
    torch.testing.assert_close(found, expected / expected.abs().mean())


@EACH
def test_a_network_that_was_not_trained(criterion: MagnitudeIncrease) -> None:
    scoring, group = scored(criterion, train=False)
    with pytest.raises(
        ValueError, match=r"^MagnitudeIncrease compares with the initial weights, but no weight has changed"
    ):
        criterion.score_units(group, scoring)
    with pytest.raises(ValueError, match=r"but no weight has changed: let the schedule start later, or let calibrate="):
        criterion.score_weights("0.weight", scoring)


def test_frozen_groups_cannot_be_scored() -> None:
    scoring, group = scored(MagnitudeIncrease())
    scoring.module.requires_grad_(False)
    with pytest.raises(CannotScoreError, match=r"^all weights of these channels are frozen"):
        MagnitudeIncrease().check(group, scoring)


@pytest.mark.parametrize("distance", [1, "magnitude", None])
def test_arguments(distance: object) -> None:
    with pytest.raises(ValueError, match=r"^MagnitudeIncrease distance=.* must be True or False$"):
        MagnitudeIncrease(distance)


# ---- without a Trainer


def test_one_event_from_an_initial_network_and_trained_weights() -> None:
    """Increases are 0, 3, 0.5, -1 and -1, 1, of which each matrix loses the lowest."""
    after = by_hand()
    trained(after)
    net, options = by_hand(), {"granularity": Weights(), "criterion": MagnitudeIncrease(), "budget": Sparsity(0.3)}
    prune_once(net, X, calibrate=lambda model: model.load_state_dict(after.state_dict()), **options)
    assert net[0].weight.tolist() == [[-1, 5], [3.5, 0]]
    assert net[1].weight.tolist() == [[0, -2]]
    with pytest.raises(ValueError, match=r"needs weights from before and after a training: pass calibrate="):
        prune_once(by_hand(), X, **options)
    with pytest.raises(ValueError, match=r"no weight has changed"):
        prune_once(by_hand(), X, calibrate=lambda model: model(X).sum(), **options)
