from dataclasses import replace

import pytest
import torch
from helpers.bundled import by_hand, space_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_prune.budgets.spaces.channel_space import ChannelSpace
from lightning_prune.budgets.spaces.dense_reference import DenseReference
from lightning_prune.budgets.spaces.weight_space import WeightSpace
from lightning_prune.coupling import Coupling, Group, Member, Passes, find_coupling
from lightning_prune.network.example_input import Example

SCORES = {
    "0.weight": torch.tensor([0.1, 0.9, 0.5, 0.3]),
    "2.weight": torch.tensor([0.2, 0.8, 0.4, 0.6, 1.0, 0.0]),
}


def chain(a: int, b: int) -> Coupling:
    """3 inputs, a and b hidden units, 2 outputs: 4a + ab + 3b + 2 parameters, 3a + ab + 2b MACs."""
    net = nn.Sequential(nn.Linear(3, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 2))
    return find_coupling(net, Example.of(torch.zeros(2, 3)))


@pytest.fixture(scope="module")
def space() -> ChannelSpace:
    coupling = chain(4, 6)
    return ChannelSpace(coupling, SCORES, DenseReference.of(coupling))


def widths(a: int, b: int) -> dict[str, int]:
    return {"0.weight": a, "2.weight": b}


def test_original_counts_the_dense_network(space: ChannelSpace) -> None:
    assert space.dense == DenseReference(params=60, macs=48, units=widths(4, 6))
    assert (space.dense.params, space.dense.macs) == (60, 48)
    assert space.now == space.dense_units == widths(4, 6)


@pytest.mark.parametrize("a", range(1, 5))
@pytest.mark.parametrize("b", range(1, 7))
def test_costs_of_every_width(space: ChannelSpace, a: int, b: int) -> None:
    assert space.params(widths(a, b)) == 4 * a + a * b + 3 * b + 2
    assert space.macs(widths(a, b)) == 3 * a + a * b + 2 * b


def test_original_stays_when_the_network_shrinks(space: ChannelSpace) -> None:
    later = ChannelSpace(chain(3, 4), {"0.weight": torch.zeros(3), "2.weight": torch.zeros(4)}, space.dense)
    assert later.dense_units == widths(4, 6)
    assert later.now == widths(3, 4)
    assert later.dense.params == 60
    assert later.params(later.now) == 12 + 12 + 12 + 2


def test_groups_with_one_unit_left_are_remembered(space: ChannelSpace) -> None:
    assert space.exhausted == {}
    later = ChannelSpace(chain(1, 6), {"2.weight": torch.zeros(6)}, space.dense)
    assert later.exhausted == {"0.weight": 4}
    assert later.params({"2.weight": 2}) == 4 + 2 + 6 + 2


def test_groups_outside_the_scope_are_not_exhausted(space: ChannelSpace) -> None:
    assert replace(space, scores={"2.weight": torch.zeros(6)}).exhausted == {}


def test_one_unit_stays_in_every_group(space: ChannelSpace) -> None:
    assert space.floor == widths(1, 1)
    assert space.removable == 8
    assert space.keep_after(8) == space.keep_after(1000) == widths(1, 1)


# lowest first: 2.weight[5], 0.weight[0], 2.weight[0], 0.weight[3], 2.weight[2], 0.weight[2], 2.weight[3], 2.weight[1]
@pytest.mark.parametrize(
    ("count", "kept"),
    [
        (-1, (4, 6)),
        (0, (4, 6)),
        (1, (4, 5)),
        (2, (3, 5)),
        (3, (3, 4)),
        (4, (2, 4)),
        (5, (2, 3)),
        (6, (1, 3)),
        (7, (1, 2)),
    ],
)
def test_the_lowest_ranked_of_all_go_first(space: ChannelSpace, count: int, kept: tuple[int, int]) -> None:
    assert space.keep_after(count) == widths(*kept)


def test_the_best_unit_of_a_weak_group_stays() -> None:
    coupling = chain(4, 6)
    scores = {"0.weight": torch.tensor([0.1, 0.2, 0.3, 0.4]), "2.weight": torch.arange(1.0, 7.0)}
    space = ChannelSpace(coupling, scores, DenseReference.of(coupling))
    assert [space.keep_after(n) for n in (3, 4, 5)] == [widths(1, 6), widths(1, 5), widths(1, 4)]


@pytest.mark.parametrize(
    ("removed", "kept"),
    [(0, (4, 6)), (0.25, (3, 5)), (1 / 3, (3, 4)), (0.5, (2, 3)), (0.75, (1, 2)), (0.9, (1, 1)), (1, (1, 1))],
)
def test_every_group_gives_its_share(space: ChannelSpace, removed: float, kept: tuple[int, int]) -> None:
    assert space.keep_share(removed) == widths(*kept)


def test_shares_refer_to_the_original(space: ChannelSpace) -> None:
    later = ChannelSpace(chain(3, 4), {"0.weight": torch.zeros(3), "2.weight": torch.zeros(4)}, space.dense)
    assert later.keep_share(0.5) == widths(2, 3)
    assert later.keep_share(0.1) == widths(3, 4)  # nothing comes back


def test_lowest_marks_what_goes(space: ChannelSpace) -> None:
    removed = space.lowest(widths(2, 3))
    assert removed["0.weight"].tolist() == [True, False, False, True]
    assert removed["2.weight"].tolist() == [True, False, True, False, False, True]
    assert not any(mask.any() for mask in space.lowest(space.now).values())


def test_ties_go_to_the_first_group_and_unit() -> None:
    coupling = chain(4, 6)
    scores = {"0.weight": torch.ones(4), "2.weight": torch.ones(6)}
    space = ChannelSpace(coupling, scores, DenseReference.of(coupling))
    assert [space.keep_after(n) for n in (2, 3, 4)] == [widths(2, 6), widths(1, 6), widths(1, 5)]
    assert space.lowest(widths(2, 5))["0.weight"].tolist() == [True, True, False, False]
    assert space.lowest(widths(2, 5))["2.weight"].tolist() == [True] + [False] * 5


# ---- round_to


def one_group(units: int, channels_per_unit: int, round_to: int, least: int = 1) -> ChannelSpace:
    index = torch.arange(units * channels_per_unit).reshape(units, channels_per_unit)
    group = Group("w", (Member("w", 0, index, False),), (), min_units=least)
    coupling = Coupling({"w": group}, {}, {}, {}, (), on_meta=False, passes=Passes())
    return ChannelSpace(coupling, {"w": torch.arange(float(units))}, DenseReference(0, 0, {"w": units}), round_to)


@pytest.mark.parametrize(
    ("now", "round_to", "table"),
    [
        # what is asked for: what is kept
        (32, 8, {32: 32, 29: 32, 28: 32, 27.9: 24, 20: 24, 19: 16, 12: 16, 11: 8, 4: 8, 3: 8, 0: 8}),
        (10, 8, {10: 8, 5: 8, 1: 8}),  # rounded to nothing removed in the reference
        (20, 8, {20: 20, 19: 16, 12: 16, 11: 8}),
        (6, 8, {6: 6, 3: 6, 0: 6}),  # fewer channels than one multiple: stays
        (7, 1, {7: 7, 3.5: 4, 3.4: 3, 0.2: 1, 0: 1}),
    ],
)
def test_widths_are_rounded_to_the_nearest_multiple(now: int, round_to: int, table: dict[float, int]) -> None:
    space = one_group(now, 1, round_to)
    assert {units: space.rounded("w", units) for units in table} == table


@pytest.mark.parametrize(("per_unit", "round_to", "step"), [(2, 4, 2), (4, 4, 1), (8, 4, 1), (3, 8, 8), (6, 8, 4)])
def test_multiples_count_channels_not_units(per_unit: int, round_to: int, step: int) -> None:
    space = one_group(16, per_unit, round_to)
    assert space.floor == {"w": step}
    assert {space.rounded("w", units) for units in range(17)} == set(range(step, 17, step))
    assert all(space.rounded("w", units) * per_unit % round_to == 0 for units in range(17))


@pytest.mark.parametrize(
    ("now", "per_unit", "round_to", "least", "floor"),
    [
        (8, 1, 1, 1, 1),
        (8, 1, 1, 2, 2),
        (8, 2, 4, 2, 2),
        (9, 1, 3, 2, 3),
        (8, 4, 4, 3, 3),
        (2, 1, 1, 2, 2),
        (1, 1, 1, 2, 1),
    ],
)
def test_the_fewest_units_that_may_stay(now: int, per_unit: int, round_to: int, least: int, floor: int) -> None:
    space = one_group(now, per_unit, round_to, least)
    assert space.floor == {"w": floor}
    assert space.keep_share(1.0) == space.keep_after(now) == {"w": floor}
    assert space.removable == now - floor


@given(st.integers(1, 100), st.integers(1, 6), st.integers(1, 16), st.integers(0, 120))
@settings(deadline=None)
def test_kept_widths_fit_whatever_is_asked(now: int, per_unit: int, round_to: int, asked: int) -> None:
    space = one_group(now, per_unit, round_to)
    kept = space.rounded("w", asked)
    assert 1 <= space.floor["w"] <= kept <= now
    assert kept == now or kept * per_unit % round_to == 0
    assert space.keep_after(asked)["w"] <= now
    assert space.removable == now - space.floor["w"]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=8), st.lists(st.integers(0, 3), min_size=2, max_size=8))
@settings(deadline=None)
def test_ranking_is_a_sort_of_all_but_the_best_of_each_group(first: list[int], second: list[int]) -> None:
    groups = {
        name: Group(name, (Member(name, 0, torch.arange(len(values)).reshape(-1, 1), False),), ())
        for name, values in (("a", first), ("b", second))
    }
    coupling = Coupling(groups, {}, {}, {}, (), on_meta=False, passes=Passes())
    scores = {"a": torch.tensor(first).float(), "b": torch.tensor(second).float()}
    space = ChannelSpace(coupling, scores, DenseReference(0, 0, {"a": len(first), "b": len(second)}))
    ranked = sorted(
        (value, name) for name, values in (("a", first), ("b", second)) for value in sorted(values)[: len(values) - 1]
    )
    for count in range(len(ranked) + 1):
        gone = [name for _, name in ranked[:count]]
        assert space.keep_after(count) == {"a": len(first) - gone.count("a"), "b": len(second) - gone.count("b")}


def test_one_weight_stays_in_every_parameter() -> None:
    assert WeightSpace(sizes={"a": 10, "b": 4, "c": 1}, masked={"a": 2, "b": 0, "c": 0}).maskable == 12


# ---- min_width


@pytest.mark.parametrize(
    ("now", "per_unit", "round_to", "min_width", "least", "floor"),
    [
        (16, 1, 1, 5, 1, 5),
        (16, 1, 8, 5, 1, 8),
        (32, 1, 8, 9, 1, 16),
        (16, 4, 1, 6, 1, 2),  # 2 units of 4 channels
        (16, 1, 1, 1, 2, 2),
        (16, 1, 1, 3, 2, 3),
        (4, 1, 1, 5, 1, 4),  # narrower: stays
        (10, 1, 8, 9, 1, 10),  # 16 would be the next multiple
    ],
)
def test_no_group_becomes_narrower_than_min_width(
    now: int, per_unit: int, round_to: int, min_width: int, least: int, floor: int
) -> None:
    space = replace(one_group(now, per_unit, round_to, least), min_width=min_width)
    assert space.floor == {"w": floor}
    assert space.keep_share(1.0) == space.keep_after(now) == space.keep_each(now) == {"w": floor}
    assert space.removable == now - floor
    assert list(space.at_minimum) == (["w"] if floor == now else [])


@pytest.mark.parametrize(
    ("now", "settings", "least", "reason"),
    [
        (10, {"round_to": 16}, 1, "round_to=16: its 10 channels are the smallest width that is allowed"),
        (8, {"round_to": 8}, 1, "round_to=8: its 8 channels are the smallest width that is allowed"),
        (4, {"min_width": 6}, 1, "min_width=6: its 4 channels are the smallest width that is allowed"),
        (10, {"round_to": 8, "min_width": 9}, 1, "round_to=8 and min_width=9: its 10 channels are the smallest width"),
        (2, {}, 2, "with fewer than 2 units a grouped convolution would become depthwise"),
        (1, {}, 1, "only its last units remain"),
    ],
)
def test_what_cannot_become_narrower_says_why(now: int, settings: dict[str, int], least: int, reason: str) -> None:
    assert replace(one_group(now, 1, 1, least), **settings).at_minimum["w"].startswith(reason)


# ---- bundles: "stream" gives 2 of its 8 units a step, "heads" 1 of its 4; "free" is by itself

TIED = {"stream": 2, "heads": 1}
BUNDLED = {
    "stream": [0.8, 0.0, 0.2, 0.4, 0.6, 1.2, 1.0, 1.4],  # chunks 0.1, 0.5, 0.9, 1.3
    "free": [0.05, 0.35, 0.65, 2.0],
    "heads": [0.3, 0.1, 0.7, 0.5],  # 0.1, 0.3, 0.5, 0.7
}  # steps 0.1, 0.4, 0.7, 1.0: with "free" .05 f, .1 b, .35 f, .4 b, .65 f, .7 b


def bundled(round_to: int = 1, min_width: int = 1, channels: dict[str, int] | None = None) -> ChannelSpace:
    coupling = by_hand({"stream": 8, "free": 4, "heads": 4}, (TIED,), channels)
    return space_of(coupling, BUNDLED, round_to=round_to, min_width=min_width)


def steps(bundle: int, free: int) -> dict[str, int]:
    return {"stream": 2 * bundle, "free": free, "heads": bundle}


def test_a_bundle_is_one_candidate_with_the_mean_score_of_its_groups() -> None:
    space = bundled()
    assert [dict(candidate.quantum) for candidate in space.candidates] == [TIED, {"free": 1}]
    scores = space.candidates[0].step_scores(space.scores)
    torch.testing.assert_close(scores, torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.double))
    assert space.floor == steps(1, 1)
    assert space.removable == 3 * 3 + 3
    assert space.steps == 6


def test_steps_of_a_bundle_are_ranked_among_single_units() -> None:
    space = bundled()
    kept = [steps(4, 4), steps(4, 3), steps(3, 3), steps(3, 2), steps(2, 2), steps(2, 1), steps(1, 1)]
    assert [space.keep_after_steps(n) for n in range(7)] == kept
    by_units = {0: 0, 1: 1, 2: 1, 3: 1, 4: 2, 5: 3, 6: 3, 7: 3, 8: 4, 9: 5, 10: 5, 11: 5, 12: 6, 99: 6}
    assert {count: space.keep_after(count) for count in by_units} == {c: kept[n] for c, n in by_units.items()}


def test_the_lowest_units_of_every_group_of_a_bundle_go() -> None:
    removed = bundled().lowest(steps(2, 4))
    assert removed["stream"].nonzero().flatten().tolist() == [1, 2, 3, 4]
    assert removed["heads"].nonzero().flatten().tolist() == [0, 1]  # 0.1 and 0.3, whichever the stream gives
    assert not removed["free"].any()


@pytest.mark.parametrize(
    ("removed", "kept"), [(0, (4, 4)), (0.2, (3, 3)), (0.5, (2, 2)), (0.7, (1, 1)), (0.63, (1, 1)), (1, (1, 1))]
)
def test_a_bundle_gives_its_share(removed: float, kept: tuple[int, int]) -> None:
    assert bundled().keep_share(removed) == steps(*kept)


def test_every_group_of_a_bundle_gives_at_most_a_count() -> None:
    assert [bundled().keep_each(n) for n in (1, 2, 3, 4, 6, 99)] == [
        steps(4, 3), steps(3, 2), steps(3, 1), steps(2, 1), steps(1, 1), steps(1, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("round_to", "channels", "stride"),
    [
        (2, {}, 2),  # heads need every second step, the stream has multiples anyway
        (4, {}, 4),  # heads 4, stream 2
        (4, {"heads": 4}, 2),
        (4, {"heads": 2, "stream": 2}, 2),
        (6, {"heads": 3, "stream": 1}, 6),  # 2 and 3 steps
        (3, {"heads": 3, "stream": 3}, 1),
    ],
)
def test_all_groups_of_a_bundle_reach_multiples_together(round_to: int, channels: dict[str, int], stride: int) -> None:
    space = bundled(round_to, channels=channels)
    assert space.candidates[0].stride == stride
    for removed in (0, 0.2, 0.4, 0.6, 0.8, 1):
        kept = space.keep_share(removed)
        assert kept["stream"] == 2 * kept["heads"]
        assert kept["heads"] in (*range(stride, 4, stride), 4)


def test_one_group_of_a_bundle_keeps_all_of_them_wide() -> None:
    space = bundled(min_width=3)  # 3 heads, so 6 of the stream
    assert space.floor == steps(3, 3)
    space = bundled(min_width=5)
    assert space.floor == steps(4, 4)
    assert space.at_minimum["stream"] == (
        "min_width=5: not all groups that are pruned together have a smaller width that is allowed"
    )
    coupling = by_hand({"stream": 8, "heads": 4}, (TIED,), least={"stream": 5})
    assert space_of(coupling, {n: BUNDLED[n] for n in ("stream", "heads")}).floor == {"stream": 6, "heads": 3}


def test_costs_of_bundles() -> None:
    space = bundled()
    assert space.params(steps(4, 4)) == 3 * 16
    assert space.params(steps(2, 3)) == 3 * (4 + 2 + 3)
    assert space.macs(steps(2, 3)) == (4 + 2 + 3) ** 2


def test_a_part_of_a_bundle_cannot_be_ranked() -> None:
    coupling = by_hand({"stream": 8, "free": 4, "heads": 4}, (TIED,))
    space = space_of(coupling, {"stream": BUNDLED["stream"], "free": BUNDLED["free"]})
    with pytest.raises(ValueError, match=r"^'stream' shrinks only together with 'heads', which is not among"):
        space.floor  # noqa: B018


def test_a_bundle_has_the_same_number_of_steps_in_all_groups() -> None:
    space = space_of(by_hand({"stream": 7, "heads": 4}, (TIED,)), {"stream": [0.0] * 7, "heads": [0.0] * 4})
    with pytest.raises(ValueError, match=r"^groups of \{'stream': 7, 'heads': 4\} units cannot lose \{'stream': 2, "):
        space.floor  # noqa: B018


def test_a_bundle_at_its_last_step_still_counts() -> None:
    """The head has one unit left, which is no group any more; the stream cannot shrink without it."""
    reference = bundled().dense
    later = space_of(by_hand({"stream": 2, "free": 4}, (TIED,)), {"free": BUNDLED["free"]}, reference)
    assert later.exhausted == {"stream": 8, "heads": 4}
    assert later.last == {"free": 1, "stream": 2, "heads": 1}


# ---- isomorphic ranking: "a" and "b" are of one kind, "c" is of another


def classes(ranking: str, **more) -> ChannelSpace:
    coupling = by_hand({"a": 4, "b": 4, "c": 4})
    reference = DenseReference.of(coupling, classes={"a": "a", "b": "a", "c": "c"})
    scores = {"a": [1.0, 2.0, 3.0, 4.0], "b": [1.5, 5.0, 6.0, 7.0], "c": [10.0, 20.0, 30.0, 40.0]}
    return space_of(coupling, scores, reference, ranking=ranking, **more)


def test_classes_are_ranked_in_isolation_and_give_equal_shares() -> None:
    kept = [tuple(classes("isomorphic").keep_after(n).values()) for n in range(10)]
    # a and b by score: a b a a b b; after each an eighth is gone; c: a quarter after each
    assert kept == [
        (4, 4, 4), (3, 4, 4), (3, 3, 4), (3, 3, 3), (2, 3, 3), (1, 3, 3), (1, 3, 2), (1, 2, 2), (1, 1, 2), (1, 1, 1)
    ]  # fmt: skip
    assert [tuple(classes("global").keep_after(n).values()) for n in (3, 5, 6)] == [(2, 3, 4), (1, 2, 4), (1, 1, 4)]


def test_what_a_class_has_given_before_counts() -> None:
    """6 of 8 are gone from a and b, 1 of 4 from c: it is c's turn until its share is gone, too."""
    dense = classes("isomorphic")
    coupling = by_hand({"b": 1, "c": 3})  # 'a' has one unit left and is no group any more
    later = space_of(coupling, {"b": [7.0], "c": [20.0, 30.0, 40.0]}, dense.dense, ranking="isomorphic")
    assert later.exhausted == {"a": 4}
    assert later.keep_after(2) == {"b": 1, "c": 1}
    coupling = by_hand({"a": 3, "b": 4, "c": 2})  # 1 of 8, 2 of 4
    scores = {"a": [2.0, 3.0, 4.0], "b": [1.5, 5.0, 6.0, 7.0], "c": [30.0, 40.0]}
    later = space_of(coupling, scores, dense.dense, ranking="isomorphic")
    assert [tuple(later.keep_after(n).values()) for n in (1, 3, 4)] == [(3, 3, 2), (1, 3, 2), (1, 2, 2)]


def test_the_last_unit_of_a_group_is_not_gone() -> None:
    """3 of 8 are gone from a and b, 3 of 8 from c: both have given the same; of equals the lower score is next."""
    dense = by_hand({"a": 4, "b": 4, "c": 8})
    reference = DenseReference.of(dense, classes={"a": "a", "b": "a", "c": "c"})
    scores = {"b": [1.0, 2.0, 3.0, 4.0], "c": [5.0, 6.0, 7.0, 8.0, 9.0]}
    later = space_of(by_hand({"b": 4, "c": 5}), scores, reference, ranking="isomorphic")
    assert [later.keep_after(n) for n in (1, 2)] == [{"b": 3, "c": 5}, {"b": 3, "c": 4}]


def test_groups_of_no_known_class_are_classes_of_their_own() -> None:
    coupling = by_hand({"a": 4, "c": 4})
    space = space_of(coupling, {"a": [1.0, 2.0, 3.0, 4.0], "c": [10.0, 20.0, 30.0, 40.0]}, ranking="isomorphic")
    assert [tuple(space.keep_after(n).values()) for n in (2, 4, 6)] == [(3, 3), (2, 2), (1, 1)]


@given(
    st.lists(st.integers(2, 12), min_size=1, max_size=5),
    st.lists(st.sampled_from("xyz"), min_size=5, max_size=5),
    st.integers(0, 60),
    st.data(),
)
@settings(deadline=None)
def test_classes_differ_by_no_more_than_a_unit(sizes: list[int], kinds: list[str], count: int, data) -> None:
    names = [f"g{n}" for n in range(len(sizes))]
    coupling = by_hand(dict(zip(names, sizes, strict=True)))
    scores = {
        n: data.draw(st.lists(st.floats(0, 1), min_size=s, max_size=s)) for n, s in zip(names, sizes, strict=True)
    }
    reference = DenseReference.of(coupling, classes=dict(zip(names, kinds, strict=False)))
    space = space_of(coupling, scores, reference, ranking="isomorphic")
    kept = space.keep_after(count)
    assert sum(space.now.values()) - sum(kept.values()) == min(count, space.removable)
    total = {k: sum(s for s, kind in zip(sizes, kinds, strict=False) if kind == k) for k in set(kinds[: len(sizes)])}
    gone = {k: total[k] - sum(kept[n] for n, kind in zip(names, kinds, strict=False) if kind == k) for k in total}
    least = {k: sum(kind == k for kind in kinds[: len(sizes)]) for k in total}
    free = [k for k in total if gone[k] < total[k] - least[k]]  # these still have something to give
    for k in free:
        for other in total:
            assert gone[other] / total[other] <= (gone[k] + 1) / total[k] + 1e-12
