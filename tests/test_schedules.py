import math
import re
from dataclasses import FrozenInstanceError, astuple
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.schedules import Constant, Cubic, Linear, Rounds, Schedule

UNITS = ["epoch", "step", "share"]


def table(schedule: Schedule, times: list[float]) -> list[float]:
    return [schedule.fraction(time) for time in times]


# ---- exact tables, from before the start to past the end


def test_constant_acts_once() -> None:
    assert table(Constant(start=3), [-1, 0, 2, 2.999, 3, 4, 1e9]) == [0, 0, 0, 0, 1, 1, 1]
    assert table(Constant(), [-1, 0, 1]) == [0, 1, 1]
    assert (Constant(start=3).last, Constant(start=3).events) == (3, 1)


def test_linear_gives_the_same_in_every_event() -> None:
    schedule = Linear(start=2, end=6)
    assert table(schedule, list(range(-1, 10))) == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert (schedule.last, schedule.events) == (6, None)


def test_linear_holds_between_events() -> None:
    assert table(Linear(start=1, end=5, every=2), [1, 2, 2.9, 3, 4.9, 5]) == [0, 0, 0, 0.5, 0.5, 1]


def test_ramp_ends_at_its_end_where_every_does_not_divide_it() -> None:
    assert table(Linear(start=0, end=5, every=2), list(range(7))) == [0, 0, 0.4, 0.4, 0.8, 1, 1]


def test_ramp_with_one_event_is_constant() -> None:
    assert table(Linear(start=0, end=4, every=100), list(range(6))) == [0, 0, 0, 0, 1, 1]


def test_cubic_by_steps() -> None:
    schedule = Cubic(start=100, end=500, every=100, unit="step")
    times = [0, 99, 100, 199, 200, 300, 400, 499, 500, 10_000]
    assert table(schedule, times) == [0, 0, 0, 0, 37 / 64, 7 / 8, 63 / 64, 63 / 64, 1, 1]


def test_rounds_by_epochs() -> None:
    schedule = Rounds(start=5, every=5, count=4)
    times = [0, 4, 5, 9, 10, 14, 15, 19, 20, 25, 1000]
    assert table(schedule, times) == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1, 1]
    assert (schedule.last, schedule.events) == (20, 4)


def test_one_round_is_constant() -> None:
    assert table(Rounds(start=2, every=1, count=1), [0, 1, 2, 3]) == table(Constant(start=2), [0, 1, 2, 3])


def test_linear_by_share() -> None:
    schedule = Linear(start=0.25, end=0.75, every=0.25, unit="share")
    assert table(schedule, [0, 0.2, 0.25, 0.49, 0.5, 0.74, 0.75, 1]) == [0, 0, 0, 0, 0.5, 0.5, 1, 1]


# ---- floating-point shares


@pytest.mark.parametrize("steps", [10, 20, 100, 1000, 937 * 10])
def test_tenths_of_a_training_are_ten_events(steps: int) -> None:
    schedule = Rounds(start=0.1, every=0.1, count=10, unit="share")
    seen = [schedule.fraction(step / steps) for step in range(steps + 1)]
    assert sorted(set(seen)) == [k / 10 for k in range(11)]
    assert [seen.index(k / 10) for k in range(11)] == [k * steps // 10 for k in range(11)]


@pytest.mark.parametrize("kind", [Linear, Cubic])
def test_tenths_of_a_training_are_ten_events_of_a_ramp(kind: type[Linear]) -> None:
    schedule = kind(start=0.0, end=1.0, every=0.1, unit="share")
    seen = [schedule.fraction(step / 1000) for step in range(1001)]
    assert [step for step in range(1, 1001) if seen[step] != seen[step - 1]] == list(range(100, 1001, 100))


def test_a_ramp_never_passes_one_just_before_its_end() -> None:
    # three times 0.1 is more than 0.3, and the time counts as the third event already
    assert Linear(start=0, end=0.3, every=0.1, unit="share").fraction(0.3 - 1e-11) == 1


def test_rounds_may_end_at_share_one_whatever_floats_make_of_it() -> None:
    schedule = Rounds(start=0.09, every=0.07, count=14, unit="share")
    assert schedule.last > 1  # by rounding alone
    assert schedule.fraction(1.0) == 1


# ---- properties


times = st.floats(-10, 3000, allow_nan=False)
starts = st.one_of(st.integers(0, 1000), st.floats(0, 1000))
lengths = st.one_of(st.integers(1, 1000), st.floats(1, 1000))


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    start = draw(starts.filter(lambda time: time == 0 or time >= 1))  # what ends within the first epoch is refused
    kind = draw(st.sampled_from([Constant, Linear, Cubic, Rounds]))
    if kind is Constant:
        return Constant(start)
    if kind is Rounds:
        return Rounds(start, draw(lengths), draw(st.integers(1, 50)))
    return kind(start, start + draw(lengths), draw(lengths))


@given(schedules(), times)
def test_fractions_lie_in_zero_to_one(schedule: Schedule, time: float) -> None:
    assert 0 <= schedule.fraction(time) <= 1


@given(schedules(), st.lists(times, min_size=2, max_size=20))
def test_fractions_never_decrease(schedule: Schedule, moments: list[float]) -> None:
    fractions = table(schedule, sorted(moments))
    assert fractions == sorted(fractions)


@given(schedules(), st.floats(1e-3, 1000))
def test_dense_before_the_start_and_done_at_the_last_event(schedule: Schedule, away: float) -> None:
    assert schedule.fraction(schedule.start - away) == 0
    assert schedule.fraction(schedule.last) == 1
    assert schedule.fraction(schedule.last + away) == 1


@given(st.integers(0, 99), st.integers(1, 99), st.integers(1, 30))
def test_shares_in_hundredths_give_exactly_count_events(start: int, every: int, count: int) -> None:
    if start + (count - 1) * every > 100:
        return
    schedule = Rounds(start / 100, every / 100, count, unit="share")
    seen = [schedule.fraction(step / 100) for step in range(101)]
    expected = [Fraction(sum(start + k * every <= step for k in range(count)), count) for step in range(101)]
    assert seen == [float(fraction) for fraction in expected]


@given(st.integers(0, 50), st.integers(1, 40), st.integers(1, 5), st.integers(0, 300))
@settings(max_examples=200)
def test_cubic_is_the_formula_of_zhu_and_gupta(start: int, events: int, every: int, time: int) -> None:
    # eq. 1: s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3 for t in {t0, t0 + dt, ..., t0 + n dt}
    final, initial = Fraction(4, 5), Fraction(0)
    steps_of_dt = min(max((time - start) // every, 0), events)
    sparsity = final + (initial - final) * (1 - Fraction(steps_of_dt * every, events * every)) ** 3
    fraction = Cubic(start, start + events * every, every, unit="step").fraction(time)
    assert fraction * 0.8 == pytest.approx(float(sparsity), abs=1e-12)


# ---- values


@pytest.mark.parametrize(
    "schedule", [Constant(2), Linear(1, 3), Cubic(1, 3, 2, "step"), Rounds(0.1, 0.1, 3, "share")], ids=repr
)
def test_schedules_are_frozen_values(schedule: Schedule) -> None:
    twin = type(schedule)(*astuple(schedule))
    assert twin == schedule
    assert hash(twin) == hash(schedule)
    assert eval(repr(schedule)) == schedule
    with pytest.raises(FrozenInstanceError):
        schedule.start = 7


def test_the_bases_are_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Schedule()


# ---- messages


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(unit="epochs"), "Constant unit='epochs' is not known; use 'epoch', 'step' or 'share'"),
        (lambda: Linear(0, 1, unit="batch"), "Linear unit='batch' is not known; use 'epoch', 'step' or 'share'"),
        (lambda: Rounds(0, 1, 1, "s"), "Rounds unit='s' is not known; use 'epoch', 'step' or 'share'"),
        (lambda: Constant(start=-1), "Constant start=-1 is negative; 0 is the beginning of the training"),
        (lambda: Cubic(-2, 3), "Cubic start=-2 is negative; 0 is the beginning of the training"),
        (lambda: Rounds(-0.5, 1, 2), "Rounds start=-0.5 is negative; 0 is the beginning of the training"),
        (lambda: Constant(2, "share"), "Constant ends at share 2 of the training; shares lie in [0, 1]"),
        (lambda: Linear(0, 1.5, unit="share"), "Linear ends at share 1.5 of the training; shares lie in [0, 1]"),
        (lambda: Rounds(0.5, 0.5, 3, "share"), "Rounds ends at share 1.5 of the training; shares lie in [0, 1]"),
        (lambda: Linear(5, 5), "Linear end=5 must lie after start=5"),
        (lambda: Cubic(5, 2), "Cubic end=2 must lie after start=5"),
        (lambda: Linear(0, 4, every=0), "Linear every=0 must be positive"),
        (lambda: Cubic(0, 4, every=-1), "Cubic every=-1 must be positive"),
        (lambda: Rounds(0, 0, 3), "Rounds every=0 must be positive"),
        (lambda: Rounds(0, 1, 0), "Rounds count=0 must be a whole number of at least 1"),
        (lambda: Rounds(0, 1, 2.5), "Rounds count=2.5 must be a whole number of at least 1"),
        (lambda: Constant(math.nan), "Constant start=nan must be a finite number, such as 5 or 0.5"),
        (lambda: Constant("5"), "Constant start='5' must be a finite number, such as 5 or 0.5"),
        (lambda: Constant(True), "Constant start=True must be a finite number, such as 5 or 0.5"),
        (lambda: Linear("a", 5), "Linear start='a' must be a finite number, such as 5 or 0.5"),
        (lambda: Linear(0, math.inf), "Linear end=inf must be a finite number, such as 5 or 0.5"),
        (lambda: Cubic(0, 5, every=math.nan), "Cubic every=nan must be a finite number, such as 5 or 0.5"),
        (lambda: Rounds(None, 1, 2), "Rounds start=None must be a finite number, such as 5 or 0.5"),
        (lambda: Rounds(0, "1", 2), "Rounds every='1' must be a finite number, such as 5 or 0.5"),
        (
            lambda: Linear(0.1, 0.75, 0.05),
            "Linear ends at epoch 0.75, within the first epoch; did you mean unit='share' (of the whole training)?",
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


def test_a_start_at_once_and_an_end_in_mid_epoch_are_fine() -> None:
    assert [Constant().last, Rounds(0, 0.25, 6).last, Constant(np.float32(1.5)).last] == [0, 1.25, 1.5]


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_is_taken(unit: str) -> None:
    assert {
        s.unit for s in (Constant(0, unit), Linear(0, 1, 1, unit), Cubic(0, 1, 1, unit), Rounds(0, 1, 2, unit))
    } == {unit}
