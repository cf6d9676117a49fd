"""Exact tables by hand, from before the start to past the end, in every unit."""

from itertools import pairwise
from math import e, pi, sqrt

import pytest

from lightning_prune.schedules import Constant, Cosine, Cubic, Exponential, Linear, OneCycle, Rounds, Schedule, Steps
from lightning_prune.schedules.schedule import Unit

UNITS = {"epoch": 1, "step": 100, "share": 0.125}  # what one tick of the tables below is in each unit
TICKS = [-1, 0, 1, 1.875, 2, 3, 4, 4.875, 5, 6, 7, 7.875, 8]


def table(schedule: Schedule, times: list[float]) -> list[float]:
    return [schedule.fraction(time) for time in times]


# Ramps leave 0 at tick 1 and have events at ticks 2, 3, 4 and 5, after 1/4, 1/2, 3/4 and all of their way.
RAMPS = {
    "linear": (Linear, {}, [1 / 4, 1 / 2, 3 / 4]),
    "cubic": (Cubic, {}, [37 / 64, 7 / 8, 63 / 64]),
    "square": (Cubic, {"power": 2}, [7 / 16, 3 / 4, 15 / 16]),
    "power 1": (Cubic, {"power": 1}, [1 / 4, 1 / 2, 3 / 4]),
    "root": (Cubic, {"power": 0.5}, [1 - sqrt(3) / 2, 1 - sqrt(2) / 2, 1 / 2]),
    "exponential": (Exponential, {"left": 1 / 16}, [8 / 15, 12 / 15, 14 / 15]),  # a half, again and again
    "fifths": (Exponential, {"left": 0.8**4}, [0.2 / 0.5904, 0.36 / 0.5904, 0.488 / 0.5904]),
    "cosine": (Cosine, {}, [(2 - sqrt(2)) / 4, 1 / 2, (2 + sqrt(2)) / 4]),
    "one cycle": (
        OneCycle,
        {},
        [(1 + e**-9) / (1 + e**1.5), (1 + e**-9) / (1 + e**-2), (1 + e**-9) / (1 + e**-5.5)],
    ),
    "one cycle, gentler": (
        OneCycle,
        {"alpha": 8, "beta": 4},
        [(1 + e**-4) / (1 + e**2), (1 + e**-4) / 2, (1 + e**-4) / (1 + e**-2)],
    ),
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", RAMPS)
def test_ramps(name: str, unit: Unit) -> None:
    kind, options, (quarter, half, most) = RAMPS[name]
    tick = UNITS[unit]
    schedule = kind(start=tick, end=5 * tick, every=tick, unit=unit, **options)
    expected = [0, 0, 0, 0, quarter, half, most, most, 1, 1, 1, 1, 1]
    found = table(schedule, [time * tick for time in TICKS])
    assert found == pytest.approx(expected, rel=1e-14, abs=0)
    assert [value for value in found if value in (0, 1)] == [0] * 4 + [1] * 5  # these exactly
    assert (schedule.last, schedule.events) == (5 * tick, None if unit == "share" else 4)


@pytest.mark.parametrize("unit", UNITS)
def test_rounds(unit: Unit) -> None:
    tick = UNITS[unit]
    schedule = Rounds(start=tick, every=2 * tick, count=4, unit=unit)
    expected = [0, 0, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.75, 0.75, 1, 1, 1]
    assert table(schedule, [time * tick for time in TICKS]) == expected
    assert (schedule.last, schedule.events) == (7 * tick, 4)


@pytest.mark.parametrize("unit", UNITS)
def test_steps(unit: Unit) -> None:
    tick = UNITS[unit]
    schedule = Steps(times=[tick, 2 * tick, 7 * tick], fractions=[0.5, 0.7, 1], unit=unit)
    expected = [0, 0, 0.5, 0.5, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 1, 1, 1]
    assert table(schedule, [time * tick for time in TICKS]) == expected
    assert (schedule.start, schedule.last, schedule.events) == (tick, 7 * tick, 3)


@pytest.mark.parametrize("unit", UNITS)
def test_constant(unit: Unit) -> None:
    tick = UNITS[unit]
    schedule = Constant(start=2 * tick, unit=unit)
    assert table(schedule, [time * tick for time in TICKS]) == [0, 0, 0, 0, *[1] * 9]
    assert (schedule.last, schedule.events) == (2 * tick, 1)
    assert table(Constant(), [-1, 0, 1]) == [0, 1, 1]


def test_ramps_hold_between_events() -> None:
    assert table(Linear(start=1, end=5, every=2), [1, 2, 2.9, 3, 4.9, 5]) == [0, 0, 0, 0.5, 0.5, 1]


def test_ramps_end_at_their_end_where_every_does_not_divide_it() -> None:
    schedule = Linear(start=0, end=5, every=2)
    assert table(schedule, list(range(7))) == [0, 0, 0.4, 0.4, 0.8, 1, 1]
    assert schedule.events == 3


def test_a_ramp_with_one_event_is_constant() -> None:
    schedule = Linear(start=0, end=4, every=100)
    assert table(schedule, list(range(6))) == [0, 0, 0, 0, 1, 1]
    assert schedule.events == 1


def test_one_round_and_one_step_are_constant() -> None:
    constant = table(Constant(start=2), [0, 1, 2, 3])
    assert table(Rounds(start=2, every=1, count=1), [0, 1, 2, 3]) == constant
    assert table(Steps((2,), (1,)), [0, 1, 2, 3]) == constant


def test_events_are_what_whole_epochs_see() -> None:
    assert Linear(0, 2, every=0.25).events == 2  # 0.5 at epoch 1, 1 at epoch 2
    assert Linear(0.5, 6.1, every=2.5).events == 3  # slots at 3, 5.5 and 6.1, seen by epochs 3, 6 and 7
    assert Linear(0.5, 6.0, every=2.5).events == 2  # slots at 3 and, with the end, at epoch 6
    assert Cubic(0, 10, power=400).events == 1  # 1 - 0.9**400 is 1 in floating point
    assert OneCycle(0, 4, alpha=1e5, beta=9e4).events == 2  # nearly nothing at epoch 1, the same at 2 and 3, then all


def test_one_cycle_is_dense_where_the_formula_is_at_seven_thousandths() -> None:
    assert (1 + e**-9) / (1 + e**5) == pytest.approx(0.0067, abs=5e-5)
    assert table(OneCycle(0, 1000, unit="step"), [0, 0.5, 1]) == pytest.approx([0, 0, (1 + e**-9) / (1 + e**4.986)])


def test_a_steep_one_cycle_does_not_overflow() -> None:
    schedule = OneCycle(0, 4, alpha=10_000, beta=5_000)
    assert table(schedule, [1, 2, 3, 4]) == pytest.approx([0, 0.5, 1, 1], abs=1e-12)


def test_cosine_is_as_fast_as_it_gets_in_the_middle() -> None:
    found = table(Cosine(0, 1000, unit="step"), list(range(1001)))
    steps = [after - before for before, after in pairwise(found)]
    assert max(steps) == pytest.approx(pi / 2 / 1000, rel=1e-5)
    assert steps.index(max(steps)) in (499, 500)
