import pytest
from helpers.bundled import by_hand, space_of
from helpers.hand_spaces import BUNDLED, TIED, budgets, bundled, shares, spaces, steps
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.budgets import Budget, BudgetError, Count, MACs, Params, Ratio, Sparsity
from lightning_prune.budgets.spaces.channel_space import ChannelSpace


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
            "Count(count=2, per_layer=False): stream, heads are pruned only together, 3 units at once; use count=3 or "
            "more, or exclude them in the scope",
        ),
        (
            Count(1, per_layer=True),
            {},
            "Count(count=1, per_layer=True): stream, heads are pruned only together, 2 units at once; use count=2 or "
            "more, or exclude them in the scope",
        ),
        (
            Count(5),
            {"round_to": 2},
            "Count(count=5, per_layer=False): stream, heads are pruned only together, 6 units at once; use count=6 or "
            "more, or exclude them in the scope",
        ),
        (
            Ratio(0.1, per_layer=False),
            {},
            "Ratio(share=0.1, per_layer=False) is 2 units, but stream, heads are pruned only together, 3 "
            "units at once; "
            "use share=0.1875 or more, or exclude them in the scope",
        ),
        (
            Ratio(0.1),
            {},
            "Ratio(share=0.1, per_layer=True) removes nothing here: groups of at most 8 units, kept in multiples of 1 "
            "channels, some pruned only together, 3 units per step. Lower round_to or remove more.",
        ),
        (
            Ratio(0.8),
            {},
            "Ratio(share=0.8, per_layer=True) keeps no channel in a group; use at most share=0.7500",
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
        BudgetError, match=r": a, b, \.\.\. are pruned only together, 4 units at once; use count=4 or more"
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
    reference = bundled().dense
    later = space_of(by_hand({"stream": 2, "free": 4}, (TIED,)), {"free": BUNDLED["free"]}, reference)
    # 9 of 16 are gone: 6 of the stream, 3 heads
    assert Ratio(0.7, per_layer=False).keep_units(later, 1.0) == {"free": 2}
    assert Ratio(0.5, per_layer=False).keep_units(later, 1.0) == {"free": 4}


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
        assert min(space.now[name], group.min_units) <= space.floor[name] <= units <= space.now[name]
        assert units == space.now[name] or (width % space.round_to == 0 and width >= space.min_width)
        assert width >= min(now, space.min_width)
    for bundle in space.coupling.bundles:
        assert len({kept[name] / quantum for name, quantum in bundle.quantum.items()}) == 1
        assert all(kept[name] % quantum == 0 for name, quantum in bundle.quantum.items())
    for name, mask in space.lowest(kept).items():
        assert int((~mask).sum()) == kept[name]
    assert set(space.at_minimum) == {name for name, now in space.now.items() if space.floor[name] == now}
    if isinstance(budget, Count):
        tied = {name for candidate in space.candidates if candidate.bundled for name in candidate.quantum}
        gone = {name: space.now[name] - kept[name] for name in kept}
        if space.round_to == 1 or tied == kept.keys():
            assert budget.per_layer or sum(gone.values()) <= budget.count
        assert not budget.per_layer or all(gone[n] <= budget.count for n in kept if n in tied or space.round_to == 1)
    if isinstance(budget, (Params, MACs, Sparsity)):
        cost, dense = (space.macs, space.dense.macs) if isinstance(budget, MACs) else (space.params, space.dense.params)
        share = budget.sparsity if isinstance(budget, Sparsity) else 1 - budget.keep
        assert cost(kept) <= dense * (1 - share * fraction) * (1 + 1e-8)


@given(spaces(), st.one_of(st.builds(Ratio, shares, st.booleans()), st.builds(Params, shares)), shares)
@settings(max_examples=300, deadline=None)
def test_two_events_arrive_where_one_does_with_bundles(space: ChannelSpace, budget: Budget, halfway: float) -> None:
    space = ChannelSpace(space.coupling, space.scores, space.dense, 1, 1, space.ranking)
    try:
        once = budget.keep_units(space, 1.0)
    except BudgetError:
        return
    first = budget.keep_units(space, halfway)
    gone = space.lowest(first)
    coupling = by_hand(
        first, tuple(bundle.quantum for bundle in space.coupling.bundles),
        {name: group.channels_per_unit for name, group in space.coupling.groups.items()},
        {name: group.min_units for name, group in space.coupling.groups.items()},
    )  # fmt: skip
    left = {name: space.scores[name][~gone[name]] for name in first}
    assert budget.keep_units(ChannelSpace(coupling, left, space.dense, 1, 1, space.ranking), 1.0) == once


@given(spaces(), st.integers(1, 6))
@settings(deadline=None)
def test_a_count_takes_something_or_says_why_not(space: ChannelSpace, count: int) -> None:
    space = ChannelSpace(space.coupling, space.scores, space.dense, ranking=space.ranking)
    try:
        kept = Count(count).keep_units(space, 1.0)
    except BudgetError:
        return
    assert kept != space.now
