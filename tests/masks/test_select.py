import io

import pytest
import torch
from helpers.allocations import Allocations
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_prune.masks import select
from lightning_prune.masks.select import lowest_masks, pack, unpack

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)


@st.composite
def scored(draw: st.DrawFn) -> dict[str, Tensor]:
    """Scores of a few tensors, from few values (many ties) or from many."""
    seed, levels = draw(st.integers(0, 2**31)), draw(st.sampled_from([1, 2, 5, 10_000]))
    generator = torch.Generator().manual_seed(seed)
    return {f"t{i}": torch.randint(levels, (size,), generator=generator).float() for i, size in enumerate(draw(SIZES))}


def hidden(masks: dict[str, Tensor]) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


# ---- which weights go


def test_the_lowest_of_all_go_by_hand() -> None:
    scores = {"a": torch.tensor([[4.0, 1.0], [3.0, 9.0]]), "b": torch.tensor([2.0, 0.0, 5.0])}
    masks = lowest_masks(scores, {}, 4)
    assert masks["a"].tolist() == [[True, False], [False, True]]
    assert masks["b"].tolist() == [False, False, True]


def test_the_lowest_of_each_go_by_hand() -> None:
    scores = {"a": torch.tensor([[4.0, 1.0], [3.0, 9.0]]), "b": torch.tensor([2.0, 0.0, 5.0])}
    masks = lowest_masks(scores, {}, {"a": 3, "b": 1})
    assert masks["a"].tolist() == [[False, False], [False, True]]
    assert masks["b"].tolist() == [True, False, True]


def test_the_best_weight_of_a_weak_parameter_survives() -> None:
    scores = {"weak": torch.tensor([0.1, 0.3, 0.2]), "strong": torch.arange(1.0, 11.0)}
    masks = lowest_masks(scores, {}, 5)
    assert masks["weak"].tolist() == [False, True, False]
    assert masks["strong"].tolist() == [False] * 3 + [True] * 7


def test_ties_go_to_the_first_parameter_and_weight() -> None:
    scores = {"a": torch.ones(2, 2), "b": torch.ones(3)}
    masks = lowest_masks(scores, {}, 4)
    # the first of the highest survives, the others go in order
    assert masks["a"].tolist() == [[True, False], [False, False]]
    assert masks["b"].tolist() == [True, False, True]
    again = lowest_masks(scores, {}, 4)
    assert all(torch.equal(masks[name], again[name]) for name in masks)


@given(scored(), st.floats(0, 1))
def test_global_counts_are_exact(scores: dict[str, Tensor], share: float) -> None:
    maskable = sum(len(values) - 1 for values in scores.values())
    count = round(share * maskable)
    masks = lowest_masks(scores, {}, count)
    assert hidden(masks) == count
    assert all(mask.any() for mask in masks.values())
    gone = torch.cat([scores[name][~mask] for name, mask in masks.items()])
    # what stays scores at least as high, but for the one survivor of each tensor
    for name, mask in masks.items():
        if count and int(mask.sum()) > 1:
            kept = scores[name][mask].sort().values
            assert kept[0] >= gone.max() or kept[1] >= gone.max()


@given(scored(), st.data())
def test_counts_by_parameter_are_exact(scores: dict[str, Tensor], data: st.DataObject) -> None:
    counts = {name: data.draw(st.integers(0, len(values) - 1)) for name, values in scores.items()}
    masks = lowest_masks(scores, {}, counts)
    for name, mask in masks.items():
        assert int((~mask).sum()) == counts[name]
        if counts[name]:
            assert scores[name][~mask].max() <= scores[name][mask].min()


@given(scored(), st.lists(st.floats(0, 1), min_size=2, max_size=5), st.booleans())
def test_nothing_regrows(scores: dict[str, Tensor], shares: list[float], globally: bool) -> None:
    masks: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    most = {name: len(values) - 1 for name, values in scores.items()}
    highest = 0
    for share in shares:  # whatever the scores say later, and even where less is asked for than is masked
        counts = {name: int(share * m) for name, m in most.items()}
        before = masks
        masks = lowest_masks(scores, before, sum(counts.values()) if globally else counts)
        for name in before:
            assert not (masks[name] & ~before[name]).any()
        highest = max(highest, sum(counts.values()))
        assert hidden(masks) >= highest
        assert all(mask.any() for mask in masks.values())
        if globally:
            assert hidden(masks) == highest
        scores = {name: torch.rand(values.shape, generator=generator) for name, values in scores.items()}


def test_a_smaller_count_brings_nothing_back() -> None:
    old = {"a": torch.tensor([False, False, True, False, True])}
    masks = lowest_masks({"a": torch.arange(5.0)}, old, 1)
    assert torch.equal(masks["a"], old["a"])


def test_parameters_without_a_mask_join() -> None:
    masks = lowest_masks(
        {"a": torch.arange(5.0, 8.0), "b": torch.zeros(3)}, {"a": torch.tensor([True, True, False])}, 3
    )
    assert masks["a"].tolist() == [True, True, False]  # the highest score, masked long ago
    assert masks["b"].tolist() == [True, False, False]


VALUES = [0.0, -0.0, 1e-45, -1e-45, 1.5, -1.5, 1.5000001, -1.5000001, 3.4e38, -3.4e38]


@given(
    st.lists(st.lists(st.sampled_from(VALUES) | st.floats(-2, 2, width=32), min_size=1, max_size=40), max_size=4),
    st.integers(0, 2**31),
    st.floats(0, 1),
    st.booleans(),
)
def test_the_selection_is_that_of_a_stable_sort(
    lists: list[list[float]], seed: int, share: float, some_masked: bool
) -> None:
    """Whatever the signs and ties, across parameters and chunks: a second implementation, in Python."""
    scores = {f"t{i}": torch.tensor(values) for i, values in enumerate(lists)}
    generator = torch.Generator().manual_seed(seed)
    old = {name: torch.rand(v.shape, generator=generator) > 0.4 for name, v in scores.items()} if some_masked else {}
    expected = {name: old[name].clone() if some_masked else torch.ones(len(scores[name])).bool() for name in scores}
    free = []
    for name, values in scores.items():
        live = [i for i in range(len(values)) if expected[name][i]]
        survivor = max(live, key=lambda i: (values[i].item(), -i), default=None)
        free += [(values[i].item(), len(free) + i, name, i) for i in live if i != survivor]
    masked = hidden(expected)
    count = round(share * (masked + len(free)))
    for _, _, name, index in sorted(free, key=lambda entry: entry[0])[: max(count - masked, 0)]:
        expected[name][index] = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "_CHUNK", 7)
        found = lowest_masks(scores, old, count)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in scores)


def test_scores_are_looked_at_and_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_CHUNK", 2**16)
    size, generator = 2**20, torch.Generator().manual_seed(0)
    scores = {name: torch.rand(512, 2048, generator=generator) for name in "abc"}
    with Allocations() as memory:
        masks = lowest_masks(scores, {}, 3 * size // 2)
    assert hidden(masks) == 3 * size // 2
    memory.sizes.sort()
    assert memory.sizes[-3:] == [size] * 3  # the masks themselves, a byte for each weight
    assert memory.sizes[-4] == 8 * 2**16  # the counts


def test_nothing_is_hidden_by_a_count_of_zero() -> None:
    masks = lowest_masks({"a": torch.zeros(2, 3)}, {}, 0)
    assert masks["a"].shape == (2, 3)
    assert masks["a"].all()


def test_scores_stay_as_they_are() -> None:
    scores = {"a": torch.rand(5, requires_grad=True)}
    before = scores["a"].detach().clone()
    lowest_masks(scores, {"a": torch.tensor([True, True, True, False, True])}, 3)
    assert torch.equal(scores["a"], before)


def test_more_weights_than_quantile_takes() -> None:
    size = 2**24 + 5  # where torch.quantile refuses, and float32 cannot count any more
    scores = torch.rand(size, generator=torch.Generator().manual_seed(0))
    masks = lowest_masks({"a": scores, "b": torch.tensor([2.0, -1.0])}, {}, size // 2)
    assert hidden(masks) == size // 2
    assert masks["b"].tolist() == [True, False]
    assert scores[~masks["a"]].max() <= scores[masks["a"]].min()


# ---- checkpoints


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5), st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=0, max_size=4
    ),
    st.integers(0, 2**31),
)
def test_packing_is_reversible(shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = {name: torch.randint(2, shape, generator=generator).bool() for name, shape in shapes.items()}
    found = unpack(pack(masks))
    assert found.keys() == masks.keys()
    for name, mask in masks.items():
        assert found[name].dtype == torch.bool
        assert found[name].shape == mask.shape
        assert torch.equal(found[name], mask)


def test_packed_masks_take_a_bit_each_and_load_safely() -> None:
    masks = {"w": torch.rand(100, 80, generator=torch.Generator().manual_seed(0)) > 0.5, "t": torch.eye(3).bool().T}
    packed = pack(masks)
    assert packed["w"]["bits"].numel() == 1000
    buffer = io.BytesIO()
    torch.save(packed, buffer)
    buffer.seek(0)
    found = unpack(torch.load(buffer, weights_only=True))
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())
