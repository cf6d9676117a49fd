"""Several budgets at once."""

import re

import pytest
import torch
from helpers.hand_spaces import budgets, kept, make_space, shares, spaces, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_prune import Channels, Weights, prune_once
from lightning_prune.budgets import (
    ERK,
    All,
    Budget,
    BudgetError,
    Count,
    MACs,
    Params,
    Ratio,
    Ratios,
    Sparsity,
    Threshold,
)
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.weight_space import WeightSpace
from lightning_prune.masks.select import lowest_masks


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([MACs(0.5), Params(0.49)], (2, 3)),  # (2, 4) and (2, 3)
        ([MACs(0.75), Ratio(0.5)], (2, 3)),
        ([Ratios({"0": 0.75}), Ratios({"2": 0.5})], (1, 3)),
        ([Threshold(0.35), Count(1)], (2, 4)),
        ([MACs(0.5)], (2, 4)),
        ([All([MACs(0.5)]), Params(0.49)], (2, 3)),
    ],
    ids=repr,
)
def test_widths_by_hand(parts: list[Budget], expected: tuple[int, int]) -> None:
    assert kept(All(parts)) == expected
    assert kept(All(parts[::-1])) == expected


@given(spaces(), st.lists(budgets, min_size=1, max_size=3), shares)
@settings(max_examples=300, deadline=None)
def test_each_budget_is_met(space: ChannelSpace, parts: list[Budget], fraction: float) -> None:
    try:
        alone = [part.keep_units(space, fraction) for part in parts]
    except BudgetError:
        with pytest.raises(BudgetError):
            All(parts).keep_units(space, fraction)
        return
    result = All(parts).keep_units(space, fraction)
    for name, units in result.items():
        assert units == min(widths[name] for widths in alone)
        width = units * space.coupling.groups[name].channels_per_unit
        assert units == space.now[name] or (width % space.round_to == 0 and width >= space.min_width)
    for bundle in space.coupling.bundles:
        assert len({result[name] / quantum for name, quantum in bundle.quantum.items()}) == 1
    for part in parts:
        if isinstance(part, (Params, MACs, Sparsity)):
            cost, dense = (
                (space.macs, space.dense.macs) if isinstance(part, MACs) else (space.params, space.dense.params)
            )
            share = part.sparsity if isinstance(part, Sparsity) else 1 - part.keep
            assert cost(result) <= dense * (1 - share * fraction) * (1 + 1e-8)


# ---- weights


def scored(values: dict[str, list[float]], masks: dict[str, torch.Tensor] | None = None) -> WeightSpace:
    scores = {name: torch.tensor(given) for name, given in values.items()}
    masks = masks or {}
    return WeightSpace(
        {name: len(given) for name, given in values.items()},
        {name: int((~masks[name]).sum()) if name in masks else 0 for name in values},
        {name: (len(given),) for name, given in values.items()},
        scores,
        masks,
    )


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([Sparsity(0.5), Count(3)], 7),
        ([Ratio(0.5), Count(3, per_layer=True)], {"a": 5, "b": 3}),
        ([Ratio(0.5), Ratios({"b": 0.75})], {"a": 5, "b": 3}),
    ],
    ids=repr,
)
def test_masks_by_hand(parts: list[Budget], expected: dict[str, int] | int) -> None:
    assert All(parts).mask_weights(weights(), 1.0) == expected


def test_a_ranking_of_all_meets_shares_of_each() -> None:
    """The lowest half of all lies in 'a'; a quarter of 'b' has to go as well."""
    space = scored({"a": [1.0, 2.0, 3.0, 4.0], "b": [5.0, 6.0, 7.0, 8.0]})
    assert All([Sparsity(3 / 8), Ratio(0.25)]).mask_weights(space, 1.0) == {"a": 3, "b": 1}


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=9),
    st.lists(st.integers(0, 4), min_size=2, max_size=9),
    st.floats(0, 0.7),
    st.floats(0, 0.7),
)
@settings(deadline=None)
def test_all_that_any_of_them_masks_is_masked(a: list[int], b: list[int], share: float, each: float) -> None:
    space = scored({"a": [float(v) for v in a], "b": [float(v) for v in b]})
    parts = [Sparsity(share), Ratio(each)]
    try:
        counts = [part.mask_weights(space, 1.0) for part in parts]
    except BudgetError:
        return
    result = lowest_masks(space.scores, {}, All(parts).mask_weights(space, 1.0))
    alone = [lowest_masks(space.scores, {}, count) for count in counts]
    for name in result:
        assert torch.equal(result[name], alone[0][name] & alone[1][name])


def test_masks_of_a_network() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    prune_once(net, torch.zeros(1, 8), granularity=Weights(), budget=All([ERK(0.5), Ratio(0.4), Sparsity(0.3)]))
    zeros = [int((net[n].weight == 0).sum()) for n in (0, 2)]
    assert zeros == [28, 7]  # ERK keeps 20 of 48 and 13 of 18; 0.4 of the second is 7.2


# ---- checks


def test_the_first_that_cannot_be_met_says_so() -> None:
    with pytest.raises(BudgetError, match=r"^Params\(keep=0.01, per_layer=False\) cannot be met"):
        All([MACs(0.5), Params(0.01)]).check_units(make_space(), None)
    with pytest.raises(BudgetError, match=r"^Count\(count=3, per_layer=False\) in 3 events requires 9 units"):
        All([MACs(0.5), Count(3)]).check_units(make_space(), 3)
    with pytest.raises(BudgetError, match=r"^Count\(count=5, per_layer=False\) in 3 events requires 15 weights"):
        All([Sparsity(0.5), Count(5)]).check_weights(weights(), 3)


@pytest.mark.parametrize("given", [[], MACs(0.5), [0.5], "MACs", None], ids=repr)
def test_the_parts_are_budgets(given: object) -> None:
    message = f"All budgets={given!r} must be a list of budgets: [MACs(keep=0.5), Params(keep=0.3)]"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        All(given)


def test_the_parts_go_with_one_granularity() -> None:
    with pytest.raises(
        ValueError, match=r"^All cannot combine MACs\(keep=0.5, per_layer=False\), for Channels\(\), with ERK\(spars"
    ):
        All([ERK(0.5), Ratio(0.1), MACs(0.5)])
    assert All([ERK(0.5), Ratio(0.1)]).masks
    assert not All([ERK(0.5), Ratio(0.1)]).units
    with pytest.raises(ValueError, match=r"^budget All\(budgets=\(ERK.* is for single weights; with Channels\(\)"):
        prune_once(nn.Linear(3, 3), torch.zeros(1, 3), budget=All([ERK(0.5), Ratio(0.1)]))
    with pytest.raises(ValueError, match=r"^budget All\(budgets=\(MACs.* counts what is physically removed"):
        prune_once(nn.Linear(3, 3), torch.zeros(1, 3), granularity=Weights(), budget=All([MACs(0.5), Ratio(0.1)]))


def test_one_that_ranks_makes_classes_compete() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    isomorphic = Channels(ranking="isomorphic")
    prune_once(net, torch.zeros(1, 3), granularity=isomorphic, budget=All([MACs(0.5), Ratio(0.1)]), dry_run=True)
    with pytest.raises(ValueError, match=r"itself; use ranking='global', or a budget with per_layer=False$"):
        prune_once(net, torch.zeros(1, 3), granularity=isomorphic, budget=All([Ratio(0.1), Ratio(0.2)]))


def test_parts_of_events_scale_what_counts_for_events() -> None:
    assert All([MACs(0.5), Count(9)]).scaled(0.5) == All([MACs(0.5), Count(4)])  # 4.5: to even
    assert Count(3).scaled(0.01) == Count(1)
    assert Ratio(0.5).scaled(0.1) == Ratio(0.5)


def test_the_value_is_frozen() -> None:
    budget = All([MACs(0.5), Count(3)])
    assert budget == eval(repr(budget))
    assert hash(budget) == hash(eval(repr(budget)))
