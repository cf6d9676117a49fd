import math

import pytest
import torch
from helpers.hand_spaces import (
    SCORES,
    A,
    B,
    budgets,
    cases,
    chain,
    kept,
    macs,
    make_space,
    params,
    shares,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.budgets import Budget, BudgetError, Count, MACs, Params, Ratio, Sparsity
from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.dense_reference import DenseReference

# ---- channels, by hand: params 60, MACs 48; the ranking is b a b a b a b b


@pytest.mark.parametrize(
    ("budget", "fraction", "expected"),
    [
        (Ratio(0.5), 1.0, (2, 3)),
        (Ratio(0.5), 0.5, (3, 5)),  # 6 * 0.75 = 4.5, and halves stay
        (Ratio(0.5), 0.0, (4, 6)),
        (Ratio(0), 1.0, (4, 6)),
        (Ratio(0.8), 1.0, (1, 1)),
        (Ratio(0.5, per_layer=False), 1.0, (2, 3)),
        (Ratio(0.5, per_layer=False), 0.4, (3, 5)),
        (Ratio(0.8, per_layer=False), 1.0, (1, 1)),
        (Sparsity(0.5), 1.0, (2, 4)),  # 60 53 44 38 30: exactly half
        (Sparsity(0.51), 1.0, (2, 3)),  # 25
        (Sparsity(0.5), 0.5, (3, 5)),  # 45 wanted, 44 is the first below
        (Sparsity(0.0), 1.0, (4, 6)),
        (Sparsity(0.5, per_layer=True), 1.0, (2, 4)),
        (Params(keep=0.5), 1.0, (2, 4)),
        (Params(keep=0.49), 1.0, (2, 3)),
        (Params(keep=0.5), 0.0, (4, 6)),
        (Params(keep=10 / 60), 1.0, (1, 1)),
        (Params(keep=0.5, per_layer=True), 1.0, (2, 4)),
        (MACs(keep=0.5), 1.0, (2, 4)),  # 48 42 34 29 22
        (MACs(keep=0.5), 0.5, (3, 5)),  # 36 wanted
        (MACs(keep=0.125), 1.0, (1, 1)),
        (MACs(keep=0.4, per_layer=True), 1.0, (2, 3)),  # 19.2 wanted, 22 and 18 around it
        (Count(3), 1.0, (3, 4)),
        (Count(3), 0.1, (3, 4)),  # the schedule says when, the count how many
        (Count(8), 1.0, (1, 1)),
        (Count(2, per_layer=True), 1.0, (2, 4)),
        (Count(100, per_layer=True), 1.0, (1, 1)),
    ],
    ids=repr,
)
def test_widths_by_hand(budget: Budget, fraction: float, expected: tuple[int, int]) -> None:
    assert kept(budget, fraction) == expected


@pytest.mark.parametrize(
    ("budget", "round_to", "expected"),
    [
        (Ratio(0.5), 2, (2, 4)),
        (Ratio(0.5), 4, (4, 4)),
        (Ratio(0.5), 8, (4, 6)),
        (Params(keep=0.5), 2, (2, 4)),  # (4, 6) (4, 4) (2, 4) (2, 2) cost 60 46 30 20
        (Params(keep=0.49), 2, (2, 2)),
        (MACs(keep=0.7), 2, (2, 4)),  # (4, 6) (4, 4) (2, 4) (2, 2) cost 48 36 22 14: 33.6 wanted
        (Sparsity(0.5, per_layer=True), 2, (2, 4)),
        (Count(3), 2, (4, 4)),
        (Count(1, per_layer=True), 4, (4, 4)),
    ],
    ids=repr,
)
def test_widths_by_hand_with_round_to(budget: Budget, round_to: int, expected: tuple[int, int]) -> None:
    assert kept(budget, round_to=round_to) == expected


def test_what_the_scope_leaves_out_stays_but_counts() -> None:
    coupling = chain(4, 6)
    space = ChannelSpace(coupling, {B: SCORES[B]}, DenseReference.of(coupling))
    assert Params(keep=0.6).keep_units(space, 1.0) == {B: 2}  # 60 53 46 39 32: 36 wanted
    assert Ratio(0.5).keep_units(space, 1.0) == {B: 3}
    assert Ratio(0.5, per_layer=False).keep_units(space, 1.0) == {B: 3}


# ---- properties


@given(cases(), budgets, shares, st.integers(1, 5))
@settings(deadline=None)
def test_at_least_one_unit_is_left_everywhere(scores, budget: Budget, fraction: float, round_to: int) -> None:
    space = make_space(scores, round_to)
    try:
        result = budget.keep_units(space, fraction)
    except BudgetError:
        return
    for name, units in result.items():
        assert 1 <= units <= len(scores[name])
        assert units == len(scores[name]) or units % round_to == 0
    removed = space.lowest(result)
    assert {name: int((~mask).sum()) for name, mask in removed.items()} == result
    for name, mask in removed.items():
        if mask.any():
            assert scores[name][mask].max() <= scores[name][~mask].min()


@given(cases(), st.sampled_from([Sparsity, Params, MACs]), shares, shares)
@settings(max_examples=200, deadline=None)
def test_one_removal_fewer_would_miss_the_target(scores, kind: type[Budget], share: float, fraction: float) -> None:
    cost = macs if kind is MACs else params
    full = cost(len(scores[A]), len(scores[B]))
    removed = share if kind is Sparsity else 1 - share
    target = full * (1 - removed * fraction) * (1 + 1e-9)
    ranked = sorted((v, name) for name in (A, B) for v in sorted(scores[name].tolist())[:-1])
    widths = {name: len(scores[name]) for name in (A, B)}
    steps = [dict(widths)]
    for _, name in ranked:
        widths[name] -= 1
        steps.append(dict(widths))
    reference = next((w for w in steps if cost(w[A], w[B]) <= target), None)
    if reference is None:
        with pytest.raises(BudgetError, match="cannot be met"):
            kind(share).keep_units(make_space(scores), fraction)
    else:
        assert kind(share).keep_units(make_space(scores), fraction) == reference


@given(cases(), st.sampled_from([Sparsity, Params, MACs]), st.floats(0.2, 1))
@settings(deadline=None)
def test_per_layer_meets_the_target_with_even_shares(scores, kind: type[Budget], keep: float) -> None:
    cost = macs if kind is MACs else params
    sizes = {name: len(scores[name]) for name in (A, B)}
    target = cost(*sizes.values()) * keep + 1e-6
    if cost(1, 1) > target:
        return
    budget = kind(1 - keep, per_layer=True) if kind is Sparsity else kind(keep, per_layer=True)
    result = budget.keep_units(make_space(scores), 1.0)
    even = [
        {n: max(1, math.floor(s * (1 - share / 4096) + 0.5)) for n, s in sizes.items()} for share in range(4096 + 1)
    ]
    assert result == next(w for w in even if cost(w[A], w[B]) <= target)


@given(cases(), budgets, shares)
@settings(max_examples=200, deadline=None)
def test_two_events_arrive_where_one_does(scores, budget: Budget, halfway: float) -> None:
    if isinstance(budget, Count):
        return  # a count is per event
    space = make_space(scores)
    try:
        once = budget.keep_units(space, 1.0)
    except BudgetError:
        return
    first = budget.keep_units(space, halfway)
    gone = space.lowest(first)
    coupling = chain(first[A], first[B])
    left = {name: scores[name][~gone[name]] for name in (A, B) if name in coupling.groups}
    if not left:
        return
    second = budget.keep_units(ChannelSpace(coupling, left, space.dense), 1.0)
    assert {**first, **second} == once


def test_shares_never_compound() -> None:
    reference = DenseReference.of(chain(4, 6))
    later = ChannelSpace(chain(2, 3), {A: torch.zeros(2), B: torch.zeros(3)}, reference)
    for budget in (Ratio(0.5), Ratio(0.5, per_layer=False), Sparsity(0.5), Params(0.5), MACs(0.5)):
        assert budget.keep_units(later, 1.0) == {A: 2, B: 3}, budget


def test_a_group_with_one_unit_left_still_counts_as_removed() -> None:
    reference = DenseReference.of(chain(4, 6))
    later = ChannelSpace(chain(1, 6), {B: torch.zeros(6)}, reference)
    assert Ratio(0.5, per_layer=False).keep_units(later, 1.0) == {B: 4}  # 3 of 10 are gone, 2 more go
    assert Ratio(0.8, per_layer=False).keep_units(later, 1.0) == {B: 1}


def test_ties_break_by_position() -> None:
    scores = {A: torch.ones(4), B: torch.ones(6)}
    assert Count(2).keep_units(make_space(scores), 1.0) == {A: 2, B: 6}
    assert Count(4).keep_units(make_space(scores), 1.0) == {A: 1, B: 5}
