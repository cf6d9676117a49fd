from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_prune.coupling import Coupling, Example, Group, Member, analyse
from lightning_prune.spaces import ChannelSpace, Original, WeightSpace

SCORES = {
    "0.weight": torch.tensor([0.1, 0.9, 0.5, 0.3]),
    "2.weight": torch.tensor([0.2, 0.8, 0.4, 0.6, 1.0, 0.0]),
}


def chain(a: int, b: int) -> Coupling:
    """3 inputs, a and b hidden units, 2 outputs: 4a + ab + 3b + 2 parameters, 3a + ab + 2b MACs."""
    net = nn.Sequential(nn.Linear(3, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 2))
    return analyse(net, Example.of(torch.zeros(2, 3)))


@pytest.fixture(scope="module")
def space() -> ChannelSpace:
    coupling = chain(4, 6)
    return ChannelSpace(coupling, SCORES, Original.of(coupling))


def widths(a: int, b: int) -> dict[str, int]:
    return {"0.weight": a, "2.weight": b}


def test_original_counts_the_dense_network(space: ChannelSpace) -> None:
    assert space.origin == Original(params=60, macs=48, units=widths(4, 6))
    assert (space.original_params, space.original_macs) == (60, 48)
    assert space.now == space.original == widths(4, 6)


@pytest.mark.parametrize("a", range(1, 5))
@pytest.mark.parametrize("b", range(1, 7))
def test_costs_of_every_width(space: ChannelSpace, a: int, b: int) -> None:
    assert space.params(widths(a, b)) == 4 * a + a * b + 3 * b + 2
    assert space.macs(widths(a, b)) == 3 * a + a * b + 2 * b


def test_original_stays_when_the_network_shrinks(space: ChannelSpace) -> None:
    later = ChannelSpace(chain(3, 4), {"0.weight": torch.zeros(3), "2.weight": torch.zeros(4)}, space.origin)
    assert later.original == widths(4, 6)
    assert later.now == widths(3, 4)
    assert later.original_params == 60
    assert later.params(later.now) == 12 + 12 + 12 + 2


def test_groups_with_one_unit_left_are_remembered(space: ChannelSpace) -> None:
    assert space.exhausted == {}
    later = ChannelSpace(chain(1, 6), {"2.weight": torch.zeros(6)}, space.origin)
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
    space = ChannelSpace(coupling, scores, Original.of(coupling))
    assert [space.keep_after(n) for n in (3, 4, 5)] == [widths(1, 6), widths(1, 5), widths(1, 4)]


@pytest.mark.parametrize(
    ("removed", "kept"),
    [(0, (4, 6)), (0.25, (3, 5)), (1 / 3, (3, 4)), (0.5, (2, 3)), (0.75, (1, 2)), (0.9, (1, 1)), (1, (1, 1))],
)
def test_every_group_gives_its_share(space: ChannelSpace, removed: float, kept: tuple[int, int]) -> None:
    assert space.keep_share(removed) == widths(*kept)


def test_shares_refer_to_the_original(space: ChannelSpace) -> None:
    later = ChannelSpace(chain(3, 4), {"0.weight": torch.zeros(3), "2.weight": torch.zeros(4)}, space.origin)
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
    space = ChannelSpace(coupling, scores, Original.of(coupling))
    assert [space.keep_after(n) for n in (2, 3, 4)] == [widths(2, 6), widths(1, 6), widths(1, 5)]
    assert space.lowest(widths(2, 5))["0.weight"].tolist() == [True, True, False, False]
    assert space.lowest(widths(2, 5))["2.weight"].tolist() == [True] + [False] * 5


# ---- round_to


def one_group(units: int, channels_per_unit: int, round_to: int, least: int = 1) -> ChannelSpace:
    index = torch.arange(units * channels_per_unit).reshape(units, channels_per_unit)
    group = Group("w", (Member("w", 0, index, False),), (), least=least)
    coupling = Coupling({"w": group}, {}, {}, {}, (), on_meta=False, trains=True)
    return ChannelSpace(coupling, {"w": torch.arange(float(units))}, Original(0, 0, {"w": units}), round_to)


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
def test_kept_widths_fit_whatever_is_asked(now: int, per_unit: int, round_to: int, asked: int) -> None:
    space = one_group(now, per_unit, round_to)
    kept = space.rounded("w", asked)
    assert 1 <= space.floor["w"] <= kept <= now
    assert kept == now or kept * per_unit % round_to == 0
    assert space.keep_after(asked)["w"] <= now
    assert space.removable == now - space.floor["w"]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=8), st.lists(st.integers(0, 3), min_size=2, max_size=8))
def test_ranking_is_a_sort_of_all_but_the_best_of_each_group(first: list[int], second: list[int]) -> None:
    groups = {
        name: Group(name, (Member(name, 0, torch.arange(len(values)).reshape(-1, 1), False),), ())
        for name, values in (("a", first), ("b", second))
    }
    coupling = Coupling(groups, {}, {}, {}, (), on_meta=False, trains=True)
    scores = {"a": torch.tensor(first).float(), "b": torch.tensor(second).float()}
    space = ChannelSpace(coupling, scores, Original(0, 0, {"a": len(first), "b": len(second)}))
    ranked = sorted(
        (value, name) for name, values in (("a", first), ("b", second)) for value in sorted(values)[: len(values) - 1]
    )
    for count in range(len(ranked) + 1):
        gone = [name for _, name in ranked[:count]]
        assert space.keep_after(count) == {"a": len(first) - gone.count("a"), "b": len(second) - gone.count("b")}


def test_one_weight_stays_in_every_parameter() -> None:
    assert WeightSpace(sizes={"a": 10, "b": 4, "c": 1}, masked={"a": 2, "b": 0, "c": 0}).maskable == 12
