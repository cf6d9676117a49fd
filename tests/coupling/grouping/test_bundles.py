"""Attributes solved from equations, and the smallest steps of bundles, against brute force."""

import operator
from itertools import product
from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_prune.coupling.grouping.bundles import find_bundles, solve_attributes
from lightning_prune.coupling.symbols.sizes import Attribute, Equation, LinearDim, Operation, evaluate

A, B, C = (Attribute("net", name) for name in "abc")
G, H = LinearDim(12, {"g": 1.0}), LinearDim(8, {"h": 1.0})


def mul(left, right) -> Operation:
    return Operation(operator.mul, left, right)


def div(left, right) -> Operation:
    return Operation(operator.floordiv, left, right)


def add(left, right) -> Operation:
    return Operation(operator.add, left, right)


def equations(*pairs) -> list[Equation]:
    return [Equation(left, right, "block") for left, right in pairs]


def values_at(known, removed) -> dict[str, int]:
    return {attribute.name: evaluate(expression, removed) for attribute, expression in known.items()}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("pairs", "before", "removed", "after"),
    [
        ([(A, G)], {A: 12}, {"g": 3}, {"a": 9}),
        ([(mul(A, 3), G)], {A: 4}, {"g": 3}, {"a": 3}),
        ([(mul(A, B), G), (A, 3)], {A: 3, B: 4}, {"g": 3}, {"a": 3, "b": 3}),
        ([(div(A, 3), LinearDim(4, {"g": 1.0}))], {A: 12}, {"g": 1}, {"a": 9}),
        ([(add(A, 4), G)], {A: 8}, {"g": 3}, {"a": 5}),
        (
            [(A, mul(B, C)), (B, 3), (C, LinearDim(4, {"g": 1.0}))],
            {A: 12, B: 3, C: 4}, {"g": 2}, {"a": 6, "b": 3, "c": 2},
        ),
        ([(C, B), (B, A), (A, G)], {A: 12, B: 12, C: 12}, {"g": 5}, {"a": 7, "b": 7, "c": 7}),
        ([(A, 7)], {A: 7}, {"g": 5}, {"a": 7}),
    ],
)  # fmt: skip
def test_attributes_by_hand(pairs, before, removed, after, swap) -> None:
    pairs = [pair[::-1] for pair in pairs] if swap else pairs
    known = solve_attributes(equations(*pairs), before)
    assert values_at(known, {}) == {attribute.name: value for attribute, value in before.items()}
    assert values_at(known, removed) == after


def test_an_attribute_alone_takes_precedence_over_arithmetic() -> None:
    # Two thirds of 13 is 8 with a rest: only `a` itself says that it is 13.
    width = LinearDim(13, {"g": 1.0})
    pairs = equations((div(mul(A, 2), 3), LinearDim(8, {"h": 1.0})), (A, width))
    for ordered in (pairs, pairs[::-1]):
        assert values_at(solve_attributes(ordered, {A: 13}), {"g": 3}) == {"a": 10}


def test_an_attribute_by_itself_keeps_its_rest() -> None:
    # a = 12 and a // 2 = 6: with 9 channels and 4, twice 4 is not 9
    pairs = equations((div(A, 2), LinearDim(6, {"h": 1.0})), (A, G))
    for ordered in (pairs, pairs[::-1]):
        assert values_at(solve_attributes(ordered, {A: 12}), {"g": 3, "h": 2}) == {"a": 9}


def test_unsolved_attributes_are_constants() -> None:
    open_product = equations((mul(A, B), G))  # either could shrink: both stay
    assert values_at(solve_attributes(open_product, {A: 3, B: 4}), {"g": 6}) == {"a": 3, "b": 4}
    rest = equations((div(A, 5), LinearDim(2, {"g": 1.0})))  # 12 // 5 = 2, which says 10 and not 12
    assert values_at(solve_attributes(rest, {A: 12}), {"g": 1}) == {"a": 12}
    assert solve_attributes([], {A: 12}) == {}
    assert solve_attributes(equations((A, A)), {A: 12}) == {A: 12}


def bundles_of(sizes, pairs, known=None):
    bundles, stuck = find_bundles(sizes, equations(*pairs), known or {})
    return [dict(bundle.quantum) for bundle in bundles], stuck


def test_bundles_by_hand() -> None:
    sizes = {"g": 12, "h": 8}
    assert bundles_of(sizes, []) == ([], {})
    assert bundles_of({"g": 12, "k": 12}, [(G, LinearDim(12, {"k": 1.0}))]) == ([{"g": 1, "k": 1}], {})
    # three heads: the stream loses three with every dimension of a head
    assert bundles_of({"g": 12, "d": 4}, [(G, LinearDim(12, {"d": 3.0}))]) == ([{"g": 3, "d": 1}], {})
    # 12 channels in 3 heads by `c // 3`
    assert bundles_of({"g": 12, "d": 4}, [(div(G, 3), LinearDim(4, {"d": 1.0}))]) == ([{"g": 3, "d": 1}], {})
    # a group by itself, in even numbers
    assert bundles_of({"g": 12}, [(mul(div(G, 2), 2), G)]) == ([{"g": 2}], {})
    # 12 and 8 by gcd 4
    assert bundles_of(sizes, [(mul(G, 2), mul(H, 3))]) == ([{"g": 3, "h": 2}], {})


def test_an_equation_that_always_holds_ties_nothing() -> None:
    assert bundles_of({"g": 12, "h": 8}, [(add(G, H), add(H, G))]) == ([], {})
    assert bundles_of({"g": 12}, [(7, 7)]) == ([], {})


def test_several_equations_make_one_bundle() -> None:
    k = LinearDim(24, {"k": 1.0})
    assert bundles_of({"g": 12, "h": 8, "k": 24, "free": 5}, [(mul(G, 2), mul(H, 3)), (k, mul(G, 2))]) == (
        [{"g": 3, "h": 2, "k": 6}],
        {},
    )
    assert bundles_of({"g": 12, "m": 12, "h": 8, "n": 8},
                      [(G, LinearDim(12, {"m": 1.0})), (H, LinearDim(8, {"n": 1.0}))]) == (
        [{"g": 1, "m": 1}, {"h": 1, "n": 1}],
        {},
    )  # fmt: skip


def test_stuck_groups_and_their_reasons() -> None:
    assert bundles_of({"g": 12, "h": 8}, [(G, 12)]) == (
        [],
        {"g": "'block': forward needs the size 12 elsewhere, which stays"},
    )
    # 12 = 8 + 4: no step keeps it
    bundles, stuck = bundles_of({"g": 12, "h": 8}, [(G, add(H, 4))])
    assert (bundles, set(stuck)) == ([], {"g", "h"})
    assert all("forward computes with the sizes of 'g' and 'h', which cannot shrink" in why for why in stuck.values())
    # 5 and 7 units have no common step
    bundles, stuck = bundles_of(
        {"p": 5, "q": 7}, [(mul(LinearDim(5, {"p": 1.0}), 7), mul(LinearDim(7, {"q": 1.0}), 5))]
    )
    assert bundles == []
    assert set(stuck) == {"p", "q"}


def test_every_step_of_a_bundle_has_to_hold() -> None:
    # g + 1 = k + (k + 3) // 14 holds for 12 and for 11, and never below
    k = LinearDim(12, {"k": 1.0})
    bundles, stuck = bundles_of({"g": 12, "k": 12}, [(add(G, 1), add(k, div(add(k, 3), 14)))])
    assert bundles == []
    assert set(stuck) == {"g", "k"}


def test_an_equation_that_breaks_at_the_second_unit() -> None:
    bundles, stuck = bundles_of({"g": 12}, [(div(add(G, 1), 2), 6)])
    assert bundles == []
    assert set(stuck) == {"g"}


def test_a_stuck_group_frees_the_rest() -> None:
    # h cannot go; g and m still can, together
    pairs = [(H, 8), (G, LinearDim(12, {"m": 1.0}))]
    assert bundles_of({"g": 12, "h": 8, "m": 12}, pairs) == (
        [{"g": 1, "m": 1}],
        {"h": "'block': forward needs the size 8 elsewhere, which stays"},
    )
    # h is stuck, and g with it, as they are equal up to a factor
    _, stuck = bundles_of({"g": 12, "h": 8, "m": 12}, [(H, 8), (mul(G, 2), mul(H, 3))])
    assert {"g", "h"} <= set(stuck)


def test_attributes_are_put_in_before() -> None:
    pairs = [(mul(A, 3), G), (A, LinearDim(4, {"d": 1.0}))]
    known = solve_attributes(equations(*pairs), {A: 4})
    bundles, stuck = find_bundles({"g": 12, "d": 4}, equations(*pairs), known)
    assert ([dict(b.quantum) for b in bundles], stuck) == ([{"g": 3, "d": 1}], {})
    assert bundles[0].reason == "'block': forward ties their sizes"


LEAVES = st.sampled_from(["g", "h", "k"])


def sides(sizes):
    """Sides of equations that are equal while nothing is removed."""
    dims = {name: LinearDim(size, {name: 1.0}) for name, size in sizes.items()}
    return st.tuples(LEAVES, LEAVES, st.sampled_from(["cross", "half", "sum"])).map(
        lambda t: {
            "cross": (mul(dims[t[0]], sizes[t[1]]), mul(dims[t[1]], sizes[t[0]])),
            "half": (mul(div(dims[t[0]], 2), 2), div(mul(dims[t[0]], 2), 2)),
            "sum": (add(dims[t[0]], dims[t[1]]), add(dims[t[1]], dims[t[0]])),
        }[t[2]]
    )


SIZES = st.fixed_dictionaries({name: st.sampled_from([2, 3, 4, 6, 8, 12]) for name in "ghk"})


@given(SIZES.flatmap(lambda sizes: st.tuples(st.just(sizes), st.lists(sides(sizes), max_size=3))))
def test_against_brute_force(drawn) -> None:
    """Whatever loses whole steps keeps every equation, and no smaller proportional step would."""
    sizes, pairs = drawn
    pairs = [(a, b) for a, b in pairs if evaluate(a, {}) == evaluate(b, {})]
    bundles, stuck = bundles_of(sizes, pairs)
    names = [name for bundle in bundles for name in bundle]
    assert len(names) == len(set(names))
    assert not set(names) & set(stuck)

    def holds(removed) -> bool:
        return all(evaluate(a, removed) == evaluate(b, removed) for a, b in pairs)

    parts = [*bundles, *({name: 1} for name in sizes if name not in names and name not in stuck)]
    steps = [min(sizes[name] // units for name, units in part.items()) for part in parts]
    for taken in product(*(range(n) for n in steps)):
        removed = {name: units * t for part, t in zip(parts, taken, strict=True) for name, units in part.items()}
        assert holds(removed), removed
    for bundle in bundles:
        assert len({sizes[name] / units for name, units in bundle.items()}) == 1
        times = gcd(*bundle.values())
        for part in range(1, times):
            if times % part == 0:
                smaller = {name: units // times * part for name, units in bundle.items()}
                count = times // part * min(sizes[n] // u for n, u in bundle.items())
                assert not all(holds({n: u * step for n, u in smaller.items()}) for step in range(1, count))
