import math
import re
from dataclasses import FrozenInstanceError

import pytest
import torch
from bundled import by_hand, space_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_prune.budgets import Budget, BudgetError, Count, MACs, Params, Ratio, Sparsity
from lightning_prune.coupling import Coupling, Example, analyse
from lightning_prune.spaces import ChannelSpace, Original, WeightSpace

A, B = "0.weight", "2.weight"
SCORES = {A: torch.tensor([0.1, 0.9, 0.5, 0.3]), B: torch.tensor([0.2, 0.8, 0.4, 0.6, 1.0, 0.0])}
_couplings: dict[tuple[int, int], Coupling] = {}


def chain(a: int, b: int) -> Coupling:
    """3 inputs, a and b hidden units, 2 outputs: 4a + ab + 3b + 2 parameters, 3a + ab + 2b MACs."""
    if (a, b) not in _couplings:
        net = nn.Sequential(nn.Linear(3, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 2))
        _couplings[a, b] = analyse(net, Example.of(torch.zeros(2, 3)))
    return _couplings[a, b]


def params(a: int, b: int) -> int:
    return 4 * a + a * b + 3 * b + 2


def macs(a: int, b: int) -> int:
    return 3 * a + a * b + 2 * b


def make_space(scores: dict[str, torch.Tensor] = SCORES, round_to: int = 1) -> ChannelSpace:
    coupling = chain(len(scores[A]), len(scores[B]))
    return ChannelSpace(coupling, scores, Original.of(coupling), round_to)


def kept(budget: Budget, fraction: float = 1.0, round_to: int = 1) -> tuple[int, int]:
    result = budget.keep_units(make_space(round_to=round_to), fraction)
    return result[A], result[B]


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
    space = ChannelSpace(coupling, {B: SCORES[B]}, Original.of(coupling))
    assert Params(keep=0.6).keep_units(space, 1.0) == {B: 2}  # 60 53 46 39 32: 36 wanted
    assert Ratio(0.5).keep_units(space, 1.0) == {B: 3}
    assert Ratio(0.5, per_layer=False).keep_units(space, 1.0) == {B: 3}


# ---- properties


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
    second = budget.keep_units(ChannelSpace(coupling, left, space.origin), 1.0)
    assert {**first, **second} == once


def test_shares_never_compound() -> None:
    origin = Original.of(chain(4, 6))
    later = ChannelSpace(chain(2, 3), {A: torch.zeros(2), B: torch.zeros(3)}, origin)
    for budget in (Ratio(0.5), Ratio(0.5, per_layer=False), Sparsity(0.5), Params(0.5), MACs(0.5)):
        assert budget.keep_units(later, 1.0) == {A: 2, B: 3}, budget


def test_a_group_with_one_unit_left_still_counts_as_removed() -> None:
    origin = Original.of(chain(4, 6))
    later = ChannelSpace(chain(1, 6), {B: torch.zeros(6)}, origin)
    assert Ratio(0.5, per_layer=False).keep_units(later, 1.0) == {B: 4}  # 3 of 10 are gone, 2 more go
    assert Ratio(0.8, per_layer=False).keep_units(later, 1.0) == {B: 1}


def test_ties_break_by_position() -> None:
    scores = {A: torch.ones(4), B: torch.ones(6)}
    assert Count(2).keep_units(make_space(scores), 1.0) == {A: 2, B: 6}
    assert Count(4).keep_units(make_space(scores), 1.0) == {A: 1, B: 5}


# ---- weights


def weights(masked: tuple[int, int] = (0, 0)) -> WeightSpace:
    return WeightSpace(sizes={"a": 10, "b": 4}, masked={"a": masked[0], "b": masked[1]})


@pytest.mark.parametrize(
    ("budget", "fraction", "expected"),
    [
        (Ratio(0.5), 1.0, {"a": 5, "b": 2}),
        (Ratio(0.5), 0.5, {"a": 2, "b": 1}),  # 2.5 and 1: halves to even
        (Ratio(0.9), 1.0, {"a": 9, "b": 3}),  # one stays
        (Ratio(0.5, per_layer=False), 1.0, 7),
        (Ratio(0.5, per_layer=False), 0.0, 0),
        (Sparsity(0.5), 1.0, 7),
        (Sparsity(0.5), 0.5, 4),
        (Sparsity(12 / 14), 1.0, 12),
        (Sparsity(0.5, per_layer=True), 1.0, {"a": 5, "b": 2}),
        (Count(3), 1.0, 3),
        (Count(12), 1.0, 12),
        (Count(3, per_layer=True), 1.0, {"a": 3, "b": 3}),
        (Count(5, per_layer=True), 1.0, {"a": 5, "b": 3}),
    ],
    ids=repr,
)
def test_masks_by_hand(budget: Budget, fraction: float, expected) -> None:
    assert budget.masks
    assert budget.mask_weights(weights(), fraction) == expected


def test_masked_shares_refer_to_the_original_and_counts_add_up() -> None:
    space = weights(masked=(4, 1))
    assert Ratio(0.5).mask_weights(space, 1.0) == {"a": 5, "b": 2}
    assert Sparsity(0.5).mask_weights(space, 1.0) == 7
    assert Count(3).mask_weights(space, 1.0) == 8
    assert Count(3, per_layer=True).mask_weights(space, 1.0) == {"a": 7, "b": 3}


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(1, 200), min_size=1),
    st.sampled_from([Ratio, Sparsity]),
    shares,
    shares,
)
@settings(deadline=None)
def test_one_weight_stays_in_every_parameter(sizes, kind: type[Budget], share: float, fraction: float) -> None:
    space = WeightSpace(sizes, dict.fromkeys(sizes, 0))
    try:
        counts = kind(share, per_layer=True).mask_weights(space, fraction)
    except BudgetError:
        return
    for name, size in sizes.items():
        assert 0 <= counts[name] <= size - 1
        assert abs(counts[name] - share * fraction * size) <= 1


# ---- checks before the first event


def test_a_count_is_checked_for_all_events_together() -> None:
    Count(4).check_units(make_space(), 2)
    Count(4).check_units(make_space(), None)
    Count(9, per_layer=True).check_units(make_space(), 9)
    Count(6).check_weights(weights(), 2)
    with pytest.raises(BudgetError) as error:
        Count(3).check_units(make_space(), 3)
    assert str(error.value) == (
        "Count(count=3, per_layer=False) in 3 events wants 9 units, but only 8 can go with one left everywhere; "
        "at most count=2"
    )
    with pytest.raises(BudgetError) as error:
        Count(5).check_weights(weights(masked=(1, 1)), 3)
    assert str(error.value) == (
        "Count(count=5, per_layer=False) in 3 events wants 15 weights, but only 10 can go with one left everywhere; "
        "at most count=3"
    )


def test_a_ratio_that_rounding_turns_into_nothing_is_refused() -> None:
    with pytest.raises(BudgetError) as error:
        Ratio(0.5).check_units(make_space(round_to=8), None)
    assert str(error.value) == (
        "Ratio(share=0.5, per_layer=True) removes nothing here: groups of at most 6 units, kept in multiples of "
        "8 channels. Lower round_to or remove more."
    )
    Ratio(0.5).check_units(make_space(round_to=4), None)
    Ratio(0).check_units(make_space(), None)


@pytest.mark.parametrize("budget", [Sparsity(0.9), Params(0.1), MACs(0.1)], ids=repr)
def test_the_end_of_the_schedule_is_checked(budget: Budget) -> None:
    with pytest.raises(BudgetError, match="cannot be met"):
        budget.check_units(make_space(), None)


# ---- messages


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Ratio(0.9), "Ratio(share=0.9, per_layer=True) leaves no channel somewhere; at most share=0.8000 can go here"),
        (
            Ratio(1, per_layer=False),
            "Ratio(share=1, per_layer=False) leaves no channel somewhere; at most share=0.8000 can go here",
        ),
        (
            Sparsity(0.9),
            "Sparsity(sparsity=0.9, per_layer=False) cannot be met: with the fewest channels left everywhere, 0.1667 "
            "of the parameters remain. Widen the scope or ask for less.",
        ),
        (
            Params(keep=0),
            "Params(keep=0, per_layer=False) cannot be met: with the fewest channels left everywhere, 0.1667 of the "
            "parameters remain. Widen the scope or ask for less.",
        ),
        (
            MACs(keep=0.1, per_layer=True),
            "MACs(keep=0.1, per_layer=True) cannot be met: with the fewest channels left everywhere, 0.1250 of the "
            "MACs remain. Widen the scope or ask for less.",
        ),
        (Count(9), "Count(count=9, per_layer=False): only 8 more units can go with one left everywhere."),
    ],
    ids=repr,
)
def test_what_cannot_be_met_says_what_can(budget: Budget, message: str) -> None:
    with pytest.raises(BudgetError) as error:
        budget.keep_units(make_space(), 1.0)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Ratio(1), "Ratio(share=1, per_layer=True) leaves no weight in a parameter; at most 0.900000 can go"),
        (Sparsity(1), "Sparsity(sparsity=1, per_layer=False) leaves no weight somewhere; at most 0.857143 can go"),
        (
            Sparsity(0.95, per_layer=True),
            "Sparsity(sparsity=0.95, per_layer=True) leaves no weight in a parameter; at most 0.900000 can go",
        ),
        (Count(13), "Count(count=13, per_layer=False): only 12 more weights can be masked"),
    ],
    ids=repr,
)
def test_masks_that_cannot_be_met_say_what_can(budget: Budget, message: str) -> None:
    with pytest.raises(BudgetError) as error:
        budget.mask_weights(weights(), 1.0)
    assert str(error.value) == message


@pytest.mark.parametrize("budget", [Params(keep=0.5), MACs(keep=0.5)], ids=repr)
def test_what_is_physically_removed_cannot_be_masked(budget: Budget) -> None:
    assert not budget.masks
    with pytest.raises(TypeError) as error:
        budget.mask_weights(weights(), 1.0)
    assert str(error.value) == (
        f"{budget!r} counts what is physically removed; with Weights() use Sparsity, Ratio or Count"
    )


@pytest.mark.parametrize(("kind", "name"), [(Ratio, "share"), (Sparsity, "sparsity"), (Params, "keep"), (MACs, "keep")])
@pytest.mark.parametrize("value", [2, 50, 1.0001, -0.1, True, "half", "0.5", None, math.nan, math.inf], ids=repr)
def test_shares_lie_in_zero_to_one(kind: type[Budget], name: str, value: object) -> None:
    with pytest.raises(
        ValueError, match="^" + re.escape(f"{kind.__name__} {name}={value!r} is outside [0, 1]; half is 0.5") + "$"
    ):
        kind(value)


@pytest.mark.parametrize("value", [0, -3, 1.5, True, "200", None], ids=repr)
def test_counts_are_whole_numbers(value: object) -> None:
    with pytest.raises(
        ValueError, match="^" + re.escape(f"Count count={value!r} must be a whole number of at least 1") + "$"
    ):
        Count(value)


@pytest.mark.parametrize("budget", [Ratio(0.5), Sparsity(0.5), Count(3), Params(0.5), MACs(0.5)], ids=repr)
def test_budgets_are_frozen_values(budget: Budget) -> None:
    twin = eval(repr(budget))
    assert twin == budget
    assert hash(twin) == hash(budget)
    with pytest.raises(FrozenInstanceError):
        budget.per_layer = True


def test_a_budget_error_is_a_value_error() -> None:
    assert issubclass(BudgetError, ValueError)


def test_a_count_that_rounding_turns_into_nothing_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"Count\(count=1, per_layer=False\) removes nothing here.*Lower round_to"):
        Count(1).check_units(make_space({A: torch.zeros(8), B: torch.zeros(8)}, round_to=4), events=None)


def test_a_count_in_too_many_events_says_how_many_there_can_be() -> None:
    """3 + 5 units can go, in at most 8 events."""
    message = (
        "Count(count=1, per_layer=False) in 9 events wants 9 units, but only 8 can go with one left everywhere; "
        "at most 8 events of count=1"
    )
    with pytest.raises(BudgetError, match="^" + re.escape(message) + "$"):
        Count(1).check_units(make_space(), 9)
    Count(1).check_units(make_space(), 8)


@pytest.mark.parametrize("value", ["yes", 1, None], ids=repr)
@pytest.mark.parametrize("make", [Ratio, Sparsity, Params, MACs, Count])
def test_per_layer_is_true_or_false(make: type[Budget], value: object) -> None:
    with pytest.raises(ValueError, match=f"^{make.__name__} per_layer={value!r} must be True or False$"):
        make(1, per_layer=value)


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


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Ratio(0.5), (2, 2)),
        (Ratio(0.3), (3, 3)),
        (Ratio(0.5, per_layer=False), (2, 2)),  # 8 of 16: 1 4 5 8
        (Ratio(0.4, per_layer=False), (3, 2)),  # 6: the next step would be 8
        (Ratio(0.75, per_layer=False), (1, 1)),
        (Count(3), (4, 3)),  # the next step would be 4
        (Count(4), (3, 3)),
        (Count(7), (3, 2)),
        (Count(12), (1, 1)),
        (Count(2, per_layer=True), (3, 2)),  # 2 of the stream, 1 head
        (Count(3, per_layer=True), (3, 1)),
        (Count(4, per_layer=True), (2, 1)),
        (Params(keep=0.5), (2, 2)),
        (Params(keep=0.49), (2, 1)),
        (Params(keep=0.5, per_layer=True), (2, 2)),
        (Sparsity(0.3), (3, 2)),  # 11.2 of 16 wanted: 15 12 11
        (MACs(keep=0.25), (2, 2)),  # 64 wanted: 8 * 8
        (MACs(keep=0.24, per_layer=True), (1, 1)),  # even shares jump from 8 to 4
    ],
    ids=repr,
)
def test_bundles_by_hand(budget: Budget, expected: tuple[int, int]) -> None:
    assert budget.keep_units(bundled(), 1.0) == steps(*expected)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Ratio(0.5), (2, 2)),
        (Ratio(0.3), (2, 2)),  # 2.8 of 4 steps: 2 or 4
        (Ratio(0.3, per_layer=False), (4, 2)),  # 5 of 16: f b f, and one step of the bundle rounds back
        (Count(6), (4, 2)),  # f b f b would be 8 units
        (Count(8), (2, 2)),
        (Count(4, per_layer=True), (2, 2)),  # 2 steps; free would have nothing
        (Params(keep=0.5), (2, 2)),
        (Params(keep=0.9), (4, 2)),  # 14.4 of 16 wanted: 14 after f b f
        (Params(keep=0.85), (2, 2)),  # 13.6 wanted: 8 after f b f b
    ],
    ids=repr,
)
def test_bundles_by_hand_with_round_to(budget: Budget, expected: tuple[int, int]) -> None:
    assert budget.keep_units(bundled(round_to=2), 1.0) == steps(*expected)


@pytest.mark.parametrize(
    ("budget", "settings", "message"),
    [
        (
            Count(2),
            {},
            "Count(count=2, per_layer=False): stream, heads shrink only together, by 3 units at once; use count=3 or "
            "more, or exclude them by the scope",
        ),
        (
            Count(1, per_layer=True),
            {},
            "Count(count=1, per_layer=True): stream, heads shrink only together, by 2 units at once; use count=2 or "
            "more, or exclude them by the scope",
        ),
        (
            Count(5),
            {"round_to": 2},
            "Count(count=5, per_layer=False): stream, heads shrink only together, by 6 units at once; use count=6 or "
            "more, or exclude them by the scope",
        ),
        (
            Ratio(0.1, per_layer=False),
            {},
            "Ratio(share=0.1, per_layer=False) is 2 units, but stream, heads shrink only together, by 3 units at once; "
            "ask for share=0.1875 or more, or exclude them by the scope",
        ),
        (
            Ratio(0.1),
            {},
            "Ratio(share=0.1, per_layer=True) removes nothing here: groups of at most 8 units, kept in multiples of 1 "
            "channels, some shrinking only together, 3 units a step. Lower round_to or remove more.",
        ),
        (
            Ratio(0.8),
            {},
            "Ratio(share=0.8, per_layer=True) leaves no channel somewhere; at most share=0.7500 can go here",
        ),
    ],
    ids=repr,
)
def test_bundles_that_are_too_coarse_say_so(budget: Budget, settings: dict[str, int], message: str) -> None:
    with pytest.raises(BudgetError) as error:
        budget.check_units(bundled(**settings), None)
    assert str(error.value) == message


def test_many_names_of_a_bundle_are_cut() -> None:
    space = space_of(by_hand({n: 4 for n in "abcd"}, (dict.fromkeys("abcd", 1),)), {n: [0.0] * 4 for n in "abcd"})
    with pytest.raises(
        BudgetError, match=r": a, b, \.\.\. shrink only together, by 4 units at once; use count=4 or more"
    ):
        Count(1).keep_units(space, 1.0)


def test_a_count_is_not_rounded_up_by_a_bundle() -> None:
    """f f f b b b are 12 units; rounding the bundle's 5 steps to 4 would take 3 more."""
    coupling = by_hand({"stream": 16, "free": 8, "heads": 8}, (TIED,))
    scores = {"stream": [5.0] * 16, "free": [1.0] * 3 + [9.0] * 5, "heads": [5.0] * 8}
    space = space_of(coupling, scores, round_to=4)
    assert Count(12).keep_units(space, 1.0) == {"stream": 16, "free": 4, "heads": 8}
    assert Count(15).keep_units(space, 1.0) == {"stream": 8, "free": 4, "heads": 4}
    assert space.keep_after(12) == {"stream": 8, "free": 4, "heads": 4}


def test_a_bundle_that_cannot_shrink_is_in_no_count_s_way() -> None:
    space = space_of(by_hand({"stream": 2, "free": 4, "heads": 1}, (TIED,)), {
        "stream": [0.0] * 2, "free": [1.0, 2.0, 3.0, 4.0], "heads": [0.0],
    })  # fmt: skip
    assert Count(1).keep_units(space, 1.0) == steps(1, 3)


def test_a_bundle_at_its_last_step_counts_as_removed() -> None:
    origin = bundled().origin
    later = space_of(by_hand({"stream": 2, "free": 4}, (TIED,)), {"free": BUNDLED["free"]}, origin)
    # 9 of 16 are gone: 6 of the stream, 3 heads
    assert Ratio(0.7, per_layer=False).keep_units(later, 1.0) == {"free": 2}
    assert Ratio(0.5, per_layer=False).keep_units(later, 1.0) == {"free": 4}


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
    origin = Original.of(coupling, classes={name: draw(st.sampled_from("xy")) for name in names})
    for bundle in bundles:
        origin.classes.update(dict.fromkeys(bundle, origin.classes[next(iter(bundle))]))
    scores = {name: draw(st.lists(st.integers(0, 4), min_size=sizes[name], max_size=sizes[name])) for name in names}
    return space_of(
        coupling, scores, origin,
        round_to=draw(st.integers(1, 9)),
        min_width=draw(st.integers(1, 6)),
        ranking=draw(st.sampled_from(["global", "isomorphic"])),
    )  # fmt: skip


@given(spaces(), budgets, shares)
@settings(max_examples=400, deadline=None)
def test_what_is_kept_fits(space: ChannelSpace, budget: Budget, fraction: float) -> None:
    try:
        kept = budget.keep_units(space, fraction)
    except BudgetError:
        return
    assert kept.keys() == space.now.keys()
    for name, units in kept.items():
        group = space.coupling.groups[name]
        width, now = units * group.channels_per_unit, space.now[name] * group.channels_per_unit
        assert min(space.now[name], group.least) <= space.floor[name] <= units <= space.now[name]
        assert units == space.now[name] or (width % space.round_to == 0 and width >= space.min_width)
        assert width >= min(now, space.min_width)
    for bundle in space.coupling.bundles:
        assert len({kept[name] / quantum for name, quantum in bundle.quantum.items()}) == 1
        assert all(kept[name] % quantum == 0 for name, quantum in bundle.quantum.items())
    for name, mask in space.lowest(kept).items():
        assert int((~mask).sum()) == kept[name]
    assert set(space.settled) == {name for name, now in space.now.items() if space.floor[name] == now}
    if isinstance(budget, Count):
        tied = {name for candidate in space.candidates if candidate.bundled for name in candidate.quantum}
        gone = {name: space.now[name] - kept[name] for name in kept}
        if space.round_to == 1 or tied == kept.keys():
            assert budget.per_layer or sum(gone.values()) <= budget.count
        assert not budget.per_layer or all(gone[n] <= budget.count for n in kept if n in tied or space.round_to == 1)
    if isinstance(budget, (Params, MACs, Sparsity)):
        cost, dense = (
            (space.macs, space.original_macs) if isinstance(budget, MACs) else (space.params, space.original_params)
        )
        share = budget.sparsity if isinstance(budget, Sparsity) else 1 - budget.keep
        assert cost(kept) <= dense * (1 - share * fraction) * (1 + 1e-8)


@given(spaces(), st.one_of(st.builds(Ratio, shares, st.booleans()), st.builds(Params, shares)), shares)
@settings(max_examples=300, deadline=None)
def test_two_events_arrive_where_one_does_with_bundles(space: ChannelSpace, budget: Budget, halfway: float) -> None:
    space = ChannelSpace(space.coupling, space.scores, space.origin, 1, 1, space.ranking)
    try:
        once = budget.keep_units(space, 1.0)
    except BudgetError:
        return
    first = budget.keep_units(space, halfway)
    gone = space.lowest(first)
    coupling = by_hand(
        first, tuple(bundle.quantum for bundle in space.coupling.bundles),
        {name: group.channels_per_unit for name, group in space.coupling.groups.items()},
        {name: group.least for name, group in space.coupling.groups.items()},
    )  # fmt: skip
    left = {name: space.scores[name][~gone[name]] for name in first}
    assert budget.keep_units(ChannelSpace(coupling, left, space.origin, 1, 1, space.ranking), 1.0) == once


@given(spaces(), st.integers(1, 6))
@settings(deadline=None)
def test_a_count_takes_something_or_says_why_not(space: ChannelSpace, count: int) -> None:
    space = ChannelSpace(space.coupling, space.scores, space.origin, ranking=space.ranking)
    try:
        kept = Count(count).keep_units(space, 1.0)
    except BudgetError:
        return
    assert kept != space.now
