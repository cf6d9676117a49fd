"""Sparsity by the shapes of layers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_prune import Weights, prune_once
from lightning_prune.budgets import ERK, BudgetError
from lightning_prune.budgets.spaces.weight_space import WeightSpace

Shapes = dict[str, tuple[int, ...]]


def space(shapes: Shapes, masked: dict[str, int] | None = None) -> WeightSpace:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return WeightSpace(sizes, {name: (masked or {}).get(name, 0) for name in sizes}, shapes)


def densities_by_the_book(shapes: Shapes, density: float) -> dict[str, float]:
    """Evci et al. 2020 in their order: whoever would be denser than 1 becomes dense, and all is scaled again."""
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / size[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        sparse = [name for name in shapes if name not in dense]
        left = density * sum(size.values()) - sum(size[name] for name in dense)
        scale = left / sum(raw[name] * size[name] for name in sparse)
        fullest = max(sparse, key=lambda name: raw[name])
        if scale * raw[fullest] <= 1:
            return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
        dense.update(name for name in sparse if raw[name] == raw[fullest])


def test_by_hand() -> None:
    """Sums of the shapes: 60, 30 and 22. Of 1800 weights 180 stay: 180 / 112 for each, 96.43, 48.21 and 35.36."""
    shapes = {"a": (40, 20), "b": (20, 10), "c": (4, 8, 5, 5)}
    counts = ERK(0.9).mask_weights(space(shapes), 1.0)
    assert {name: math.prod(shapes[name]) - n for name, n in counts.items()} == {"a": 97, "b": 48, "c": 35}


def test_layers_that_would_overflow_stay_dense() -> None:
    """(10, 10): sum 20 of 100; (3, 3, 1, 1): sum 8 of 9. Half of 109 are 54: 8 / 28 · 54 = 15.4 > 9."""
    counts = ERK(0.5).mask_weights(space({"wide": (10, 10), "thin": (3, 3, 1, 1)}), 1.0)
    assert counts == {"wide": 54, "thin": 0}


def test_one_weight_stays_in_the_smallest_layer() -> None:
    """10 of 10004 stay: 10 · 4 / 204 of the small layer would be none."""
    assert ERK(0.999).mask_weights(space({"big": (100, 100), "small": (2, 2)}), 1.0) == {"big": 9991, "small": 3}


def test_a_vector_is_as_dense_as_can_be() -> None:
    counts = ERK(0.5).mask_weights(space({"matrix": (10, 10), "bias": (10,)}), 1.0)
    assert counts == {"matrix": 55, "bias": 0}


shapes_of = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=6,
).map(lambda found: {f"p{n}": shape for n, shape in enumerate(found)})


@given(shapes_of, st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_the_total_is_exact_and_densities_are_those_of_the_book(shapes: Shapes, sparsity: float) -> None:
    given_, total = space(shapes), sum(math.prod(shape) for shape in shapes.values())
    wanted = round(sparsity * total)
    if wanted > given_.maskable:
        with pytest.raises(BudgetError, match=f"use at most {given_.maskable / total:.6f}$"):
            ERK(sparsity).mask_weights(given_, 1.0)
        return
    counts = ERK(sparsity).mask_weights(given_, 1.0)
    assert sum(counts.values()) == wanted
    assert all(0 <= count <= given_.sizes[name] - 1 for name, count in counts.items())
    book = densities_by_the_book(shapes, 1 - wanted / total) if 0 < wanted < total else {}
    if all(book[name] * size >= 1 for name, size in given_.sizes.items() if book):  # else one weight stays
        for name, density in book.items():
            assert abs(given_.sizes[name] * (1 - density) - counts[name]) <= 1 + 1e-6


@given(shapes_of, st.floats(0, 1), st.lists(st.floats(0, 1), min_size=2, max_size=5))
@settings(max_examples=200, deadline=None)
def test_on_the_way_nothing_comes_back_and_the_total_interpolates(
    shapes: Shapes, sparsity: float, fractions: list[float]
) -> None:
    now = space(shapes)
    if round(sparsity * sum(now.sizes.values())) > now.maskable:
        return
    for fraction in sorted(fractions):
        counts = ERK(sparsity).mask_weights(now, fraction)
        assert all(counts[name] >= now.masked[name] for name in counts)
        assert sum(counts.values()) == round(sparsity * fraction * sum(now.sizes.values()))
        now = space(shapes, counts)


def test_more_masked_than_is_asked_for_stays_masked() -> None:
    assert ERK(0.5).mask_weights(space({"a": (4, 4), "b": (4, 4)}, {"a": 15, "b": 14}), 1.0) == {"a": 15, "b": 14}
    counts = ERK(0.5).mask_weights(space({"a": (4, 4), "b": (4, 4)}, {"a": 12, "b": 0}), 1.0)
    assert counts == {"a": 12, "b": 4}


def test_a_network() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 32, 3), nn.Flatten(), nn.Linear(32, 10))
    prune_once(net, torch.zeros(1, 3, 5, 5), granularity=Weights(), budget=ERK(0.8))
    kept = [int(torch.count_nonzero(net[n].weight)) for n in (0, 2, 4)]
    sums, sizes = [8 + 3 + 3 + 3, 32 + 8 + 3 + 3, 10 + 32], [216, 2304, 320]
    scale = round(0.2 * sum(sizes)) / sum(sums)
    assert sum(kept) == 568
    assert all(abs(k - scale * s) < 1 for k, s in zip(kept, sums, strict=True))


def test_channels_are_refused_before_anything_is_looked_at() -> None:
    with pytest.raises(ValueError, match=r"^budget ERK\(sparsity=0.5\) is for single weights; with Channels\(\) use "):
        prune_once(nn.Linear(3, 3), torch.zeros(1, 3), budget=ERK(0.5))


@pytest.mark.parametrize("value", [2, -0.1, True, "half", None, math.nan], ids=repr)
def test_the_sparsity_is_a_share(value: object) -> None:
    with pytest.raises(ValueError, match=r"^ERK sparsity=.* must be a number in \[0, 1\], such as 0.5 for one half$"):
        ERK(value)
