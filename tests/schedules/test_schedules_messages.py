"""Every wrong argument is named with its value and the cure; nothing right is refused."""

import math
import re

import numpy as np
import pytest

import lightning_prune.schedules
from lightning_prune.schedules import Constant, Cosine, Cubic, Exponential, Linear, OneCycle, Rounds, Steps

UNITS = "is not known; use 'epoch', 'step' or 'share'"
NEGATIVE = "is negative; 0 is the start of the training"
NUMBER = "must be a finite number, such as 5 or 0.5"
SHARES = "of the training; shares lie in [0, 1]"
LEAVES = "must be a number in (0, 1), such as 0.1 for Sparsity(0.9)"
POSITIVE = "must be a finite number above 0"
ASCENDING = "list them in ascending order"
RAMPS = [Linear, Cubic, Exponential, Cosine, OneCycle]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(unit="epochs"), f"Constant unit='epochs' {UNITS}"),
        (lambda: Rounds(0, 1, 1, "s"), f"Rounds unit='s' {UNITS}"),
        (lambda: Steps([1], [1], None), f"Steps unit=None {UNITS}"),
        (lambda: Constant(start=-1), f"Constant start=-1 {NEGATIVE}"),
        (lambda: Rounds(-0.5, 1, 2), f"Rounds start=-0.5 {NEGATIVE}"),
        (lambda: Steps([-1, 2], [0.5, 1]), f"Steps times[0]=-1 {NEGATIVE}"),
        (lambda: Constant(2, "share"), f"Constant ends at share 2 {SHARES}"),
        (lambda: Rounds(0.5, 0.5, 3, "share"), f"Rounds ends at share 1.5 {SHARES}"),
        (lambda: Steps([0.5, 1.5], [0.5, 1], "share"), f"Steps ends at share 1.5 {SHARES}"),
        (lambda: Rounds(0, 0, 3), f"Rounds every=0 {POSITIVE}"),
        (lambda: Rounds(0, 1, 0), "Rounds count=0 must be an integer of at least 1"),
        (lambda: Rounds(0, 1, 2.5), "Rounds count=2.5 must be an integer of at least 1"),
        (lambda: Rounds(0, 1, True), "Rounds count=True must be an integer of at least 1"),
        (lambda: Constant(math.nan), f"Constant start=nan {NUMBER}"),
        (lambda: Constant("5"), f"Constant start='5' {NUMBER}"),
        (lambda: Constant(True), f"Constant start=True {NUMBER}"),
        (lambda: Rounds(None, 1, 2), f"Rounds start=None {NUMBER}"),
        (lambda: Rounds(0, "1", 2), f"Rounds every='1' {POSITIVE}"),
        (lambda: Cubic(0, 4, power=0), f"Cubic power=0 {POSITIVE}"),
        (lambda: Cubic(0, 4, power=-3), f"Cubic power=-3 {POSITIVE}"),
        (lambda: Cubic(0, 4, power=math.inf), f"Cubic power=inf {POSITIVE}"),
        (lambda: Cubic(0, 4, power="3"), f"Cubic power='3' {POSITIVE}"),
        (lambda: Exponential(0, 4, left=0), f"Exponential left=0 {LEAVES}"),
        (lambda: Exponential(0, 4, left=1), f"Exponential left=1 {LEAVES}"),
        (lambda: Exponential(0, 4, left=10), f"Exponential left=10 {LEAVES}"),
        (lambda: Exponential(0, 4, left=math.nan), f"Exponential left=nan {LEAVES}"),
        (lambda: OneCycle(0, 4, alpha=0), f"OneCycle alpha=0 {POSITIVE}"),
        (lambda: OneCycle(0, 4, alpha=math.inf), f"OneCycle alpha=inf {POSITIVE}"),
        (lambda: OneCycle(0, 4, beta=None), f"OneCycle beta=None {NUMBER}"),
        (
            lambda: OneCycle(0, 4, beta=15),
            "OneCycle beta=15 must lie in [0, alpha=14]; the middle is at beta / alpha",
        ),
        (
            lambda: OneCycle(0, 4, alpha=3, beta=-1),
            "OneCycle beta=-1 must lie in [0, alpha=3]; the middle is at beta / alpha",
        ),
        (lambda: Steps(5, [1]), "Steps times=5 must be a list of at least one number, such as [5, 10]"),
        (lambda: Steps([], []), "Steps times=[] must be a list of at least one number, such as [5, 10]"),
        (lambda: Steps("12", [1]), "Steps times='12' must be a list of at least one number, such as [5, 10]"),
        (lambda: Steps([1], 1), "Steps fractions=1 must be a list of at least one number, such as [0.5, 1.0]"),
        (lambda: Steps([1, "2"], [0.5, 1]), f"Steps times[1]='2' {NUMBER}"),
        (lambda: Steps([1, 2], [math.nan, 1]), f"Steps fractions[0]=nan {NUMBER}"),
        (
            lambda: Steps([1, 2, 3], [0.5, 1]),
            "Steps has 3 times=(1, 2, 3), but 2 fractions=(0.5, 1); give one fraction for each time",
        ),
        (
            lambda: Steps([1, 5, 3], [0.1, 0.2, 1]),
            f"Steps times[2]=3 must be greater than the entry before it, 5; {ASCENDING}",
        ),
        (lambda: Steps([1, 1], [0.5, 1]), f"Steps times[1]=1 must be greater than the entry before it, 1; {ASCENDING}"),
        (
            lambda: Steps([1, 2, 3], [0.5, 0.5, 1]),
            f"Steps fractions[1]=0.5 must be greater than the entry before it, 0.5; {ASCENDING}",
        ),
        (
            lambda: Steps([1, 2], [0, 1]),
            "Steps fractions=(0, 1) must lie in (0, 1] and end at 1, which is the budget",
        ),
        (
            lambda: Steps([1, 2], [0.5, 0.9]),
            "Steps fractions=(0.5, 0.9) must lie in (0, 1] and end at 1, which is the budget",
        ),
        (
            lambda: Steps([1, 2], [0.5, 50]),
            "Steps fractions=(0.5, 50) must lie in (0, 1] and end at 1, which is the budget",
        ),
        (
            lambda: Steps([0.2, 0.5], [0.5, 1]),
            "Steps ends at epoch 0.5, within the first epoch; did you mean unit='share' (of the whole training)?",
        ),
        (
            lambda: Constant(0.5, "step"),
            "Constant ends at step 0.5, within the first step; did you mean unit='share' (of the whole training)?",
        ),
    ],
)
def test_messages_name_the_argument_and_the_value(make, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        make()


@pytest.mark.parametrize("kind", RAMPS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 1, "batch"), f"unit='batch' {UNITS}"),
        ((-2, 3), f"start=-2 {NEGATIVE}"),
        ((0, 1.5, 0.1, "share"), f"ends at share 1.5 {SHARES}"),
        ((5, 5), "end=5 must lie after start=5"),
        ((5, 2), "end=2 must lie after start=5"),
        ((0, 4, 0), f"every=0 {POSITIVE}"),
        ((0, 4, -1), f"every=-1 {POSITIVE}"),
        (("a", 5), f"start='a' {NUMBER}"),
        ((0, math.inf), f"end=inf {NUMBER}"),
        ((0, 5, math.nan), f"every=nan {POSITIVE}"),
        (
            (0.1, 0.75, 0.05),
            "ends at epoch 0.75, within the first epoch; did you mean unit='share' (of the whole training)?",
        ),
    ],
    ids=str,
)
def test_ramps_check_their_times(kind: type[Linear], arguments, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(f"{kind.__name__} {message}") + "$"):
        kind(*arguments)


def test_a_start_at_once_and_an_end_in_mid_epoch_are_fine() -> None:
    assert [Constant().last, Rounds(0, 0.25, 6).last, Constant(np.float32(1.5)).last] == [0, 1.25, 1.5]
    assert Steps([0, np.int64(2)], [np.float32(0.5), 1]).last == 2


@pytest.mark.parametrize("unit", ["epoch", "step", "share"])
def test_every_unit_is_taken(unit: str) -> None:
    made = [Constant(0, unit), Rounds(0, 1, 2, unit), Steps([0, 1], [0.5, 1], unit)]
    assert {schedule.unit for schedule in [*made, *(kind(0, 1, 1, unit) for kind in RAMPS)]} == {unit}


def test_everything_public_is_exported_and_nothing_else() -> None:
    public = {"Constant", "Cosine", "Cubic", "Exponential", "Linear", "OneCycle", "Rounds", "Schedule", "Steps"}
    assert set(lightning_prune.schedules.__all__) == public
    classes = {name for name, value in vars(lightning_prune.schedules).items() if isinstance(value, type)}
    assert classes == public
