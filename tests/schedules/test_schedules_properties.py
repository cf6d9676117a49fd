"""What holds for every schedule, in every unit."""

from dataclasses import astuple
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_prune.schedules import Constant, Cosine, Cubic, Exponential, Linear, OneCycle, Rounds, Schedule, Steps

OPTIONS: dict[type[Schedule], dict[str, st.SearchStrategy[Any]]] = {
    Linear: {},
    Cubic: {"power": st.floats(0.01, 100)},
    Exponential: {"left": st.floats(1e-6, 1 - 1e-6)},
    Cosine: {},
    OneCycle: {"alpha": st.floats(1, 2000)},
}
numbers = st.one_of(st.integers(0, 300), st.floats(0, 300))
apart = st.one_of(st.integers(1, 300), st.floats(0.125, 300))


@st.composite
def ramps(draw: st.DrawFn, units: tuple[str, ...] = ("epoch", "step", "share")) -> Schedule:
    unit, kind = draw(st.sampled_from(units)), draw(st.sampled_from(list(OPTIONS)))
    if unit == "share":
        start, end = sorted(draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True)))
        times = (start / 1000, end / 1000, draw(st.integers(1, 1000)) / 1000)
    else:
        start = draw(numbers)
        times = (start, start + draw(apart) + 1, draw(apart))  # what ends within the first epoch is refused
    options = {name: draw(values) for name, values in OPTIONS[kind].items()}
    if kind is OneCycle:
        options["beta"] = draw(st.floats(0, options["alpha"]))
    return kind(*times, unit, **options)


@st.composite
def others(draw: st.DrawFn) -> Schedule:
    unit, kind = draw(st.sampled_from(["epoch", "step", "share"])), draw(st.sampled_from([Constant, Rounds, Steps]))
    most = 1000
    times = sorted(draw(st.lists(st.integers(1, most), min_size=2, max_size=9, unique=True)))
    scale = 1 / most if unit == "share" else draw(st.sampled_from([1, 1.5]))
    if kind is Constant:
        return Constant(times[0] * scale, unit)
    if kind is Steps:
        shares = sorted(draw(st.lists(st.integers(1, 99), min_size=len(times), max_size=len(times), unique=True)))
        return Steps([time * scale for time in times], [*(share / 100 for share in shares[:-1]), 1], unit)
    count = draw(st.integers(1, 50))
    every = draw(st.integers(1, max((most - times[0]) // count, 1)))
    return Rounds(min(times[0], most - count * every if count > 1 else most) * scale, every * scale, count, unit)


every_schedule = st.one_of(ramps(), others())


def moment(schedule: Schedule, part: float) -> float:
    """From before the start, at part -0.25, to past the end, at 1.25."""
    return schedule.start + part * max(schedule.last - schedule.start, 0.5)


parts = st.floats(-0.25, 1.25)


@given(every_schedule, st.lists(parts, min_size=2, max_size=20))
@settings(max_examples=300)
def test_fractions_lie_in_zero_to_one_and_never_decrease(schedule: Schedule, at: list[float]) -> None:
    fractions = [schedule.fraction(moment(schedule, part)) for part in sorted(at)]
    assert fractions == sorted(fractions)
    assert all(type(fraction) is float and 0 <= fraction <= 1 for fraction in fractions)


@given(ramps(), st.integers(0, 100))
@settings(max_examples=300)
def test_neighbouring_events_never_decrease(schedule: Any, index: int) -> None:
    first, second = (schedule.fraction(schedule.start + n * schedule.every) for n in (index, index + 1))
    assert first <= second


@given(every_schedule, st.floats(1e-3, 1000))
@settings(max_examples=300)
def test_dense_before_the_start_and_frozen_from_the_end_on(schedule: Schedule, away: float) -> None:
    assert schedule.fraction(schedule.start - away) == 0
    assert [schedule.fraction(time) for time in (schedule.last, schedule.last + away, 1e12)] == [1, 1, 1]


@given(ramps())
def test_ramps_are_dense_at_their_start(schedule: Schedule) -> None:
    assert schedule.fraction(schedule.start) == 0


@given(ramps(units=("epoch", "step")))
@settings(max_examples=500)
def test_events_of_ramps_are_the_increases_that_a_training_sees(schedule: Schedule) -> None:
    seen = [schedule.fraction(time) for time in range(ceil(schedule.last) + 3)]
    assert schedule.events == sum(after > before for before, after in pairwise(seen))


@given(ramps(units=("share",)))
def test_shares_leave_the_number_of_events_of_a_ramp_open(schedule: Schedule) -> None:
    assert schedule.events is None


@given(others())
def test_events_of_lists_are_their_increases(schedule: Any) -> None:
    times = {
        Constant: lambda: [schedule.start],
        Rounds: lambda: [schedule.start + n * schedule.every for n in range(schedule.count)],
        Steps: lambda: list(schedule.times),
    }[type(schedule)]()
    seen = [0.0] + [schedule.fraction(time) for time in times]
    assert schedule.events == len(set(seen)) - 1 == len(times)


# ---- floating-point shares


@pytest.mark.parametrize("steps", [10, 20, 100, 1000, 937 * 10])
def test_tenths_of_a_training_are_ten_rounds(steps: int) -> None:
    schedule = Rounds(start=0.1, every=0.1, count=10, unit="share")
    seen = [schedule.fraction(step / steps) for step in range(steps + 1)]
    assert sorted(set(seen)) == [k / 10 for k in range(11)]
    assert [seen.index(k / 10) for k in range(11)] == [k * steps // 10 for k in range(11)]


@pytest.mark.parametrize("kind", list(OPTIONS))
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


def test_rounds_close_together_end_at_their_last_time() -> None:
    schedule = Rounds(start=1000.1, every=1e-6, count=4)
    assert (schedule.last - schedule.start) / schedule.every < 3 - 1e-9  # by rounding alone
    assert schedule.fraction(schedule.last) == 1


def test_steps_happen_at_their_share_whatever_floats_make_of_it() -> None:
    schedule = Steps([0.1 + 0.2], [1.0], unit="share")
    assert schedule.times[0] > 3 / 10  # by rounding alone
    assert schedule.fraction(3 / 10) == 1


@given(st.integers(0, 99), st.integers(1, 99), st.integers(1, 30))
def test_shares_in_hundredths_give_exactly_count_events(start: int, every: int, count: int) -> None:
    if start + (count - 1) * every > 100:
        return
    schedule = Rounds(start / 100, every / 100, count, unit="share")
    seen = [schedule.fraction(step / 100) for step in range(101)]
    expected = [Fraction(sum(start + k * every <= step for k in range(count)), count) for step in range(101)]
    assert seen == [float(fraction) for fraction in expected]


# ---- what the papers say


@given(st.integers(0, 50), st.integers(1, 40), st.integers(1, 5), st.integers(0, 300))
@settings(max_examples=200)
def test_cubic_is_the_formula_of_zhu_and_gupta(start: int, events: int, every: int, time: int) -> None:
    # eq. 1: s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3 for t in {t0, t0 + dt, ..., t0 + n dt}
    final, initial = Fraction(4, 5), Fraction(0)
    steps_of_dt = min(max((time - start) // every, 0), events)
    sparsity = final + (initial - final) * (1 - Fraction(steps_of_dt * every, events * every)) ** 3
    fraction = Cubic(start, start + events * every, every, unit="step").fraction(time)
    assert fraction * 0.8 == pytest.approx(float(sparsity), abs=1e-12)


@given(st.integers(1, 30), st.floats(0.01, 0.99))
def test_exponential_takes_the_same_share_of_what_is_left(events: int, left: float) -> None:
    schedule = Exponential(start=0, end=events, left=left)
    densities = [1 - (1 - left) * schedule.fraction(time) for time in range(events + 1)]
    ratios = [after / before for before, after in pairwise(densities)]
    assert ratios == pytest.approx([left ** (1 / events)] * events, rel=1e-9)


# ---- values

VALUES = [
    Constant(2),
    Linear(1, 3),
    Cubic(1, 3, 2, "step", power=2),
    Exponential(1, 3, left=0.2),
    Cosine(1, 3),
    OneCycle(0, 1, 0.1, "share", alpha=10, beta=4),
    Rounds(0.1, 0.1, 3, "share"),
    Steps((1, 2), (0.5, 1)),
]


@pytest.mark.parametrize("schedule", VALUES, ids=repr)
def test_schedules_are_frozen_values(schedule: Any) -> None:
    twin = type(schedule)(*astuple(schedule))
    assert twin == schedule
    assert hash(twin) == hash(schedule)
    assert eval(repr(schedule)) == schedule
    for name in (*vars(schedule), "start"):
        with pytest.raises(AttributeError):  # of which FrozenInstanceError is one
            setattr(schedule, name, 7)


def test_lists_become_tuples() -> None:
    schedule = Steps([1, 2], [0.5, 1])
    assert (schedule.times, schedule.fractions) == ((1, 2), (0.5, 1))
    assert {schedule} == {Steps((1, 2), (0.5, 1))}


def test_the_base_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Schedule()
