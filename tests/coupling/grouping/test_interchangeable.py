"""Families of interchangeable units against a dictionary of signatures; balances become ties or equations."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_prune.coupling import find_coupling
from lightning_prune.coupling.grouping.interchangeable import resolve_balances
from lightning_prune.coupling.symbols.channel_ids import NO_CHANNEL
from lightning_prune.coupling.tracing.trace import Trace
from lightning_prune.network.example_input import Example


def trace_of(*sizes: int) -> Trace:
    """A trace of vectors ``a``, ``b``, ... of these sizes."""
    trace = Trace()
    trace.labels = {"abcdefgh"[n]: [trace.channel_ids.new(size)] for n, size in enumerate(sizes)}
    return trace


def balance(trace: Trace, rows: list[np.ndarray], where: str = "block") -> None:
    trace.balances.append((rows, where))


def ids(trace: Trace, name: str) -> np.ndarray:
    return trace.labels[name][0]


def families_of(trace: Trace) -> list[tuple[dict[str, int], list[list[tuple[str, int]]]]]:
    """Every family as its signature by names, and its units as the indices (name, index) in them."""
    families, _ = resolve_balances(trace)
    found = []
    for signature, members in families.families:
        where = {families.places[place][0]: count for place, count in signature}
        units = [
            [(n, i) for n in trace.labels for i, slot in enumerate(ids(trace, n)) if families.units[slot] == unit]
            for unit in members
        ]
        found.append((where, units))
    return found


def reference(trace: Trace) -> dict[tuple[tuple[str, int], ...], set[frozenset[tuple[str, int]]]]:
    """Signature -> units, by plain loops over slots that are tied."""
    units = trace.channel_ids.units()
    slots = [(name, i, units[slot]) for name in trace.labels for i, slot in enumerate(ids(trace, name))]
    owned = defaultdict(list)
    for name, i, unit in slots:
        owned[unit].append((name, i))
    found = defaultdict(set)
    for members in owned.values():
        counts = defaultdict(int)
        for name, _ in members:
            counts[name] += 1
        found[tuple(sorted(counts.items()))].add(frozenset(members))
    return dict(found)


def test_families_by_hand() -> None:
    trace = trace_of(4, 6)
    trace.channel_ids.tie(ids(trace, "a"), ids(trace, "b")[:4], "")
    trace.channel_ids.tie(ids(trace, "b")[4:5], ids(trace, "b")[5:], "")
    assert families_of(trace) == [
        ({"a": 1, "b": 1}, [[("a", i), ("b", i)] for i in range(4)]),
        ({"b": 2}, [[("b", 4), ("b", 5)]]),
    ]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4).flatmap(
        lambda sizes: st.tuples(
            st.just(sizes), st.lists(st.tuples(st.integers(0, sum(sizes) - 1), st.integers(0, sum(sizes) - 1)))
        )
    )
)
def test_families_against_plain_loops(drawn) -> None:
    sizes, ties = drawn
    trace = trace_of(*sizes)
    for a, b in ties:
        trace.channel_ids.tie(np.array([a]), np.array([b]), "")
    found = families_of(trace)
    assert {tuple(sorted(w.items())): {frozenset(u) for u in units} for w, units in found} == reference(trace)
    families, equations = resolve_balances(trace)
    assert equations == []
    for number, (_, members) in enumerate(families.families):
        assert (np.diff(members) > 0).all()
        assert (families.family_of[members] == number).all()
    starts = [signature for signature, _ in families.families]
    assert starts == sorted(starts)


def test_nothing_to_group() -> None:
    families, equations = resolve_balances(Trace())
    assert (families.families, families.places, equations) == ([], [], [])


def test_a_balance_within_a_family_is_a_tie() -> None:
    trace = trace_of(6)
    rows = ids(trace, "a").reshape(3, 2)
    balance(trace, list(rows), "block")
    assert resolve_balances(trace)[1] == []
    assert families_of(trace) == [({"a": 3}, [[("a", i), ("a", 2 + i), ("a", 4 + i)] for i in range(2)])]


def test_a_balance_between_families_is_an_equation() -> None:
    trace = trace_of(6, 2, 4)
    rows = ids(trace, "a").reshape(3, 2)
    trace.channel_ids.tie(rows[0], ids(trace, "b"), "")  # what is read where tells the rows apart
    trace.channel_ids.tie(rows[1:].ravel(), ids(trace, "c"), "")
    balance(trace, [rows[0], rows[1:].ravel()[:2]], "block")
    families, equations = resolve_balances(trace)
    assert [(len(e.left.ids), len(e.right.ids), e.where) for e in equations] == [(2, 2, "block")]
    assert {len(members) for _, members in families.families} == {2, 4}


def test_query_key_value() -> None:
    """q and k meet, v goes elsewhere: three rows, two families, one equation."""
    trace = trace_of(12, 4, 4)
    q, k, v = ids(trace, "a").reshape(3, 4)
    trace.channel_ids.tie(q, k, "")
    trace.channel_ids.tie(v, ids(trace, "b"), "")
    balance(trace, [q, k, v], "attn")
    _, equations = resolve_balances(trace)
    assert [(e.left.ids.tolist(), e.right.ids.tolist()) for e in equations] == [(v.tolist(), q.tolist())]
    assert len(families_of(trace)) == 3  # q with k; v; c


def test_a_frozen_row_freezes_the_others() -> None:
    trace = trace_of(6, 2)
    rows = ids(trace, "a").reshape(3, 2)
    trace.channel_ids.tie(rows[0], ids(trace, "b"), "")
    trace.channel_ids.freeze(rows[0][:1], "first one stays")
    balance(trace, list(rows), "block")
    families, equations = resolve_balances(trace)
    assert equations == []
    reasons = trace.channel_ids.frozen_units(families.units)
    assert reasons.known(families.units[rows[:, 0]]).all()
    assert not reasons.known(families.units[rows[:, 1]]).any()
    assert families.units[rows[0, 1]] == families.units[rows[1, 1]] == families.units[rows[2, 1]]


def test_a_row_with_constants_ties_and_freezes() -> None:
    trace = trace_of(4)
    rows = ids(trace, "a").reshape(2, 2)
    padded = np.array([NO_CHANNEL, rows[1, 1]])
    balance(trace, [rows[0], padded], "block")
    families, equations = resolve_balances(trace)
    assert equations == []
    reasons = trace.channel_ids.frozen_units(families.units)
    assert reasons.known(families.units[rows[0, :1]]).all()
    assert families.units[rows[0, 1]] == families.units[rows[1, 1]]


def test_a_frozen_row_of_another_family_freezes_too() -> None:
    trace = trace_of(6, 3)
    rows = ids(trace, "a").reshape(2, 3)
    trace.channel_ids.tie(rows[0], ids(trace, "b"), "")
    trace.channel_ids.freeze(rows[0][1:2], "stays")
    balance(trace, list(rows))
    families, equations = resolve_balances(trace)
    assert equations == []
    assert trace.channel_ids.frozen_units(families.units).known(families.units[rows[1]]).tolist() == [
        False,
        True,
        False,
    ]


def test_the_same_balance_many_times_is_one() -> None:
    trace = trace_of(6, 3)
    rows = ids(trace, "a").reshape(2, 3)
    trace.channel_ids.tie(rows[0], ids(trace, "b"), "")
    for _ in range(5):
        balance(trace, list(rows), "block")
    assert len(resolve_balances(trace)[1]) == 1


def test_a_tie_can_make_another_balance_one() -> None:
    """Tying the rows of one balance joins the families of the other's."""
    trace = trace_of(4, 4, 2, 2)
    a, b = ids(trace, "a").reshape(2, 2), ids(trace, "b").reshape(2, 2)
    trace.channel_ids.tie(a.ravel(), b.ravel(), "")
    balance(trace, list(a), "one")
    balance(trace, list(b), "two")
    families, equations = resolve_balances(trace)
    assert equations == []
    assert families.units[a[0, 0]] == families.units[a[1, 0]] == families.units[b[1, 0]]


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_equal_rows_add_nothing(rows: int) -> None:
    trace = trace_of(3)
    balance(trace, [ids(trace, "a")] * rows, "block")
    families, equations = resolve_balances(trace)
    assert equations == []
    assert len(families.families[0][1]) == 3


class Halves(nn.Module):
    """The input beside channels, then halves of both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 11), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.cat([x, self.first(x)], -1).chunk(2, -1)
        return self.second(a * b)


def test_halves_of_the_input_and_channels() -> None:
    coupling = find_coupling(Halves(), Example.of(torch.randn(2, 5)))
    assert coupling.groups["first.weight"].size == 3  # 5 of the 8 products have a fixed factor
