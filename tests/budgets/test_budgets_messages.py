import math
import re
from dataclasses import FrozenInstanceError

import pytest
import torch
from helpers.hand_spaces import (
    A,
    B,
    make_space,
    weights,
)

from lightning_prune.budgets import Budget, BudgetError, Count, MACs, Params, Ratio, Sparsity

# ---- checks before the first event


def test_a_count_is_checked_for_all_events_together() -> None:
    Count(4).check_units(make_space(), 2)
    Count(4).check_units(make_space(), None)
    Count(9, per_layer=True).check_units(make_space(), 9)
    Count(6).check_weights(weights(), 2)
    with pytest.raises(BudgetError) as error:
        Count(3).check_units(make_space(), 3)
    assert str(error.value) == (
        "Count(count=3, per_layer=False) in 3 events requires 9 units, but only 8 can be removed, with "
        "one kept in every group; "
        "use at most count=2"
    )
    with pytest.raises(BudgetError) as error:
        Count(5).check_weights(weights(masked=(1, 1)), 3)
    assert str(error.value) == (
        "Count(count=5, per_layer=False) in 3 events requires 15 weights, but only 10 can be removed, "
        "with one kept in every parameter; "
        "use at most count=3"
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
        (Ratio(0.9), "Ratio(share=0.9, per_layer=True) keeps no channel in a group; use at most share=0.8000"),
        (
            Ratio(1, per_layer=False),
            "Ratio(share=1, per_layer=False) keeps no channel in a group; use at most share=0.8000",
        ),
        (
            Sparsity(0.9),
            "Sparsity(sparsity=0.9, per_layer=False) cannot be met: with the fewest channels in every group, 0.1667 "
            "of the parameters remain. Widen the scope or increase the target.",
        ),
        (
            Params(keep=0),
            "Params(keep=0, per_layer=False) cannot be met: with the fewest channels in every group, 0.1667 of the "
            "parameters remain. Widen the scope or increase the target.",
        ),
        (
            MACs(keep=0.1, per_layer=True),
            "MACs(keep=0.1, per_layer=True) cannot be met: with the fewest channels in every group, 0.1250 of the "
            "MACs remain. Widen the scope or increase the target.",
        ),
        (Count(9), "Count(count=9, per_layer=False): only 8 more units can be removed, with one kept in every group"),
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
        (Ratio(1), "Ratio(share=1, per_layer=True) keeps no weight in a parameter; use at most 0.900000"),
        (Sparsity(1), "Sparsity(sparsity=1, per_layer=False) keeps no weight in a parameter; use at most 0.857143"),
        (
            Sparsity(0.95, per_layer=True),
            "Sparsity(sparsity=0.95, per_layer=True) keeps no weight in a parameter; use at most 0.900000",
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
        ValueError,
        match="^"
        + re.escape(f"{kind.__name__} {name}={value!r} must be a number in [0, 1], such as 0.5 for one half")
        + "$",
    ):
        kind(value)


@pytest.mark.parametrize("value", [0, -3, 1.5, True, "200", None], ids=repr)
def test_counts_are_whole_numbers(value: object) -> None:
    with pytest.raises(
        ValueError, match="^" + re.escape(f"Count count={value!r} must be an integer of at least 1") + "$"
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
        "Count(count=1, per_layer=False) in 9 events requires 9 units, but only 8 can be removed, with "
        "one kept in every group; "
        "use at most 8 events of count=1"
    )
    with pytest.raises(BudgetError, match="^" + re.escape(message) + "$"):
        Count(1).check_units(make_space(), 9)
    Count(1).check_units(make_space(), 8)


@pytest.mark.parametrize("value", ["yes", 1, None], ids=repr)
@pytest.mark.parametrize("make", [Ratio, Sparsity, Params, MACs, Count])
def test_per_layer_is_true_or_false(make: type[Budget], value: object) -> None:
    with pytest.raises(ValueError, match=f"^{make.__name__} per_layer={value!r} must be True or False$"):
        make(1, per_layer=value)
