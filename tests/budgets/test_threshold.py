"""Whatever scores below a value goes."""

import math

import pytest
import torch
from helpers.bundled import by_hand, space_of
from helpers.hand_spaces import BUNDLED, TIED, A, B, bundled, kept, make_space, spaces, steps
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune import Channels, Weights, prune_once
from lightning_prune.budgets import BudgetError, Threshold
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace
from lightning_prune.criteria import BatchNormScale, Magnitude
from lightning_prune.masks.select import lowest_masks


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, (4, 6)),
        (0.1, (4, 5)),  # 0.1 itself is not below
        (0.35, (2, 4)),
        (0.7, (1, 2)),
        (5.0, (1, 1)),  # the best survive
        (-1.0, (4, 6)),
    ],
)
def test_widths_by_hand(value: float, expected: tuple[int, int]) -> None:
    assert kept(Threshold(value)) == expected
    assert kept(Threshold(value), fraction=1e-9) == expected  # not interpolated
    assert kept(Threshold(value), fraction=0.0) == (4, 6)


@pytest.mark.parametrize(
    ("round_to", "value", "expected"), [(2, 0.35, (2, 4)), (2, 0.1, (4, 6)), (4, 0.7, (4, 4)), (4, 0.35, (4, 4))]
)
def test_widths_are_rounded_to_the_nearest(round_to: int, value: float, expected: tuple[int, int]) -> None:
    assert kept(Threshold(value), round_to=round_to) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.08, (4, 3)), (0.2, (3, 3)), (0.5, (2, 2)), (9.0, (1, 1))])
def test_bundles_go_by_the_score_of_a_step(value: float, expected: tuple[int, int]) -> None:
    """Steps of the bundle score 0.1, 0.4, 0.7 and 1, units of the other group 0.05, 0.35, 0.65 and 2."""
    assert Threshold(value).keep_units(bundled(), 1.0) == steps(*expected)


def test_a_score_equal_to_the_value_stays_whatever_the_precision() -> None:
    """0.7 is less as float32 than as float64."""
    space = space_of(by_hand({"a": 3}), {"a": [0.7, 0.7, 2.0]})
    assert Threshold(0.7).keep_units(space, 1.0) == {"a": 3}
    weights = WeightSpace({"w": 3}, {"w": 0}, scores={"w": torch.tensor([0.7, 0.7, 2.0])})
    assert Threshold(0.7).mask_weights(weights, 1.0) == {"w": 0}


@given(spaces(), st.integers(-1, 6))
@settings(deadline=None)
def test_exactly_the_lower_units_go(space: ChannelSpace, value: int) -> None:
    space = ChannelSpace(space.coupling, space.scores, space.dense)
    result = Threshold(value).keep_units(space, 1.0)
    tied = {name for bundle in space.coupling.bundles for name in bundle.quantum}
    for name in result.keys() - tied:
        wanted = int((space.scores[name] >= value).sum())
        assert result[name] == max(wanted, space.floor[name])
    assert Threshold(value).keep_units(space, 0.0) == space.now


@given(spaces(), st.floats(-1, 6))
@settings(deadline=None)
def test_whatever_is_asked_of_the_widths_is_kept(space: ChannelSpace, value: float) -> None:
    result = Threshold(value).keep_units(space, 1.0)
    for name, units in result.items():
        width = units * space.coupling.groups[name].channels_per_unit
        assert space.floor[name] <= units <= space.now[name]
        assert units == space.now[name] or width % space.round_to == 0
    for bundle in space.coupling.bundles:
        assert len({result[name] / quantum for name, quantum in bundle.quantum.items()}) == 1


# ---- weights


class Counting(dict):
    """Scores that know how many of them were alive at once at most."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> torch.Tensor:
        self.asked.append(name)
        return super().__getitem__(name).clone()


def test_masks_by_hand() -> None:
    scores = Counting({"a": torch.tensor([[0.1, -0.5], [0.9, 0.3]]), "b": torch.tensor([0.2, 0.1])})
    space = WeightSpace({"a": 4, "b": 2}, {"a": 0, "b": 0}, scores=scores)
    assert Threshold(0.3).mask_weights(space, 1.0) == {"a": 2, "b": 1}  # one of b survives
    assert scores.asked == ["a", "b"]  # one look at each
    assert Threshold(0.3).mask_weights(space, 0.0) == {"a": 0, "b": 0}
    assert Threshold(-1).mask_weights(space, 1.0) == {"a": 0, "b": 0}


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
    st.integers(-4, 4),
)
@settings(deadline=None)
def test_what_is_masked_stays_and_the_lower_rest_follows(values: list[int], alive: list[bool], value: int) -> None:
    scores, mask = torch.tensor(values).float(), torch.tensor(alive[: len(values)])
    mask[-1] = True
    space = WeightSpace(
        {"w": len(values)}, {"w": int((~mask).sum())}, scores={"w": scores}, masks={"w": mask}
    )  # fmt: skip
    counts = Threshold(value).mask_weights(space, 1.0)
    result = lowest_masks(space.scores, space.masks, counts)["w"]
    expected = mask & (scores >= value)
    if not expected.any():
        assert result.sum() == 1
        assert scores[result].max() == scores[mask].max()
    else:
        assert torch.equal(result, expected)


# ---- on networks


def test_slimming_by_a_threshold_on_gamma() -> None:
    """Liu et al. 2017: all channels whose |γ| lies below one threshold for the whole network."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Conv2d(4, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(6, 2),
    )  # fmt: skip
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.01, -0.5, 0.7, -0.02]))
        net[4].weight.copy_(torch.tensor([-0.1, 0.2, 0.05, 1.0, 0.09999, 0.0]))
    report = prune_once(net, torch.zeros(1, 1, 5, 5), criterion=BatchNormScale(), budget=Threshold(0.1))
    assert net[1].weight.tolist() == pytest.approx([-0.5, 0.7])
    assert net[4].weight.tolist() == pytest.approx([-0.1, 0.2, 1.0])
    assert report.fraction == 1.0


def test_weights_below_a_magnitude() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 2))
    before = [net[0].weight.detach().clone(), net[1].weight.detach().clone()]
    prune_once(net, torch.zeros(1, 6), granularity=Weights(), criterion=Magnitude(), budget=Threshold(0.2))
    for layer, dense in zip(net, before, strict=True):
        assert torch.equal(layer.weight == 0, dense.abs() < 0.2)


# ---- messages


@pytest.mark.parametrize("value", [True, "0.1", None, math.nan, math.inf, -math.inf], ids=repr)
def test_the_value_is_a_finite_number(value: object) -> None:
    with pytest.raises(ValueError, match=r"^Threshold value=.* must be a finite number, in the units of the criterion"):
        Threshold(value)


def test_nothing_that_can_go_is_said_at_once() -> None:
    with pytest.raises(BudgetError, match=r"^Threshold\(value=0.1\) removes nothing here: groups of at most 6 units"):
        Threshold(0.1).check_units(make_space(round_to=8), None)
    Threshold(0.1).check_units(make_space(round_to=4), None)
    Threshold(100.0).check_units(make_space(), 7)


def test_classes_do_not_compete_for_a_threshold() -> None:
    with pytest.raises(ValueError, match=r"but budget Threshold\(value=0.1\) prunes each group by itself; use ranking"):
        prune_once(
            torch.nn.Linear(2, 2), torch.zeros(1, 2), granularity=Channels(ranking="isomorphic"), budget=Threshold(0.1)
        )


def test_steps_of_a_bundle_that_has_lost_some() -> None:
    """The threshold is the same later: what has survived it does not go."""
    first = Threshold(0.5).keep_units(bundled(), 1.0)
    gone = bundled().lowest(first)
    left = {name: [v for v, g in zip(values, gone[name], strict=True) if not g] for name, values in BUNDLED.items()}
    later = space_of(by_hand(first, (TIED,)), left, bundled().dense)
    assert Threshold(0.5).keep_units(later, 1.0) == first


def test_names_of_groups() -> None:
    assert Threshold(0.35).keep_units(make_space(), 1.0) == {A: 2, B: 4}
