"""Block space: how many blocks each budget removes, computed by hand."""

import pytest

from lightning_prune.budgets import (
    ERK,
    All,
    Budget,
    BudgetError,
    Count,
    FileSize,
    Latency,
    MACs,
    Params,
    Ratio,
    Ratios,
    Sparsity,
    Threshold,
)
from lightning_prune.budgets.spaces import BlockSpace, DenseReference

DENSE = DenseReference(100, 1000, dict.fromkeys("abcd", 1))
SPACE = BlockSpace(DENSE, 100, 1000, params=(10, 20, 30, 20), macs=(400, 100, 200, 100))
LATER = BlockSpace(DENSE, 70, 500, params=(30, 20), macs=(200, 100), removed=2)


def test_costs_without_the_first_blocks() -> None:
    assert [SPACE.params_after(count) for count in range(5)] == [100, 90, 70, 40, 20]
    assert [LATER.macs_after(count) for count in range(3)] == [500, 300, 200]
    assert (len(SPACE), len(LATER)) == (4, 2)


@pytest.mark.parametrize(
    ("budget", "fraction", "first", "later"),
    [
        (Count(2), 0.3, 2, 2),
        (Ratio(0.75), 1.0, 3, 1),
        (Ratio(0.75), 0.5, 2, 0),  # 1.5 rounds to 2
        (Ratio(0.25), 1.0, 1, 0),
        (Sparsity(0.5), 1.0, 3, 1),
        (Sparsity(0.3), 1.0, 2, 0),
        (Sparsity(0.3), 0.2, 1, 0),
        (Params(0.4), 1.0, 3, 1),
        (MACs(0.5), 1.0, 2, 0),
        (MACs(0.3), 0.5, 1, 0),
        (MACs(0.3), 1.0, 3, 1),
    ],
)
def test_blocks_removed(budget: Budget, fraction: float, first: int, later: int) -> None:
    assert budget.remove_blocks(SPACE, fraction) == first
    assert budget.remove_blocks(LATER, fraction) == later


@pytest.mark.parametrize("budget", [Count(5), Sparsity(0.81), Params(0.19), MACs(0.19)])
def test_targets_out_of_reach(budget: Budget) -> None:
    with pytest.raises(BudgetError, match="blocks"):
        budget.remove_blocks(SPACE, 1.0)


@pytest.mark.parametrize(
    "budget", [ERK(0.5), FileSize(1.0), Latency(1.0), Ratios({"a": 0.5}), Threshold(1.0), All([Count(1)])]
)
def test_budgets_without_blocks_refuse(budget: Budget) -> None:
    assert not budget.blocks
    with pytest.raises(TypeError, match="does not choose between blocks; with Blocks\\(\\) use Count"):
        budget.remove_blocks(SPACE, 1.0)


def test_checks_before_the_first_event() -> None:
    Count(2).check_blocks(SPACE, 2)
    with pytest.raises(BudgetError, match="in 3 events"):
        Count(2).check_blocks(SPACE, 3)
    with pytest.raises(BudgetError, match=r"share=0\.2500"):
        Ratio(0.1).check_blocks(SPACE, 1)
    Ratio(0.1).check_blocks(LATER, 1)
