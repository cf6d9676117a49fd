import pytest
from helpers.hand_spaces import shares, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.budgets import Budget, BudgetError, Count, Ratio, Sparsity
from lightning_prune.budgets.spaces.weight_space import WeightSpace


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
