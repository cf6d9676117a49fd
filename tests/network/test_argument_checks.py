import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from lightning_prune.network.argument_checks import (
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_share,
)


class Owner:
    """Stands for an object that takes the argument."""


def exactly(message: str) -> str:
    """A pattern that matches this message and no other."""
    return f"^{re.escape(message)}$"


@pytest.mark.parametrize(("value", "minimum"), [(0, None), (-7, None), (1, 1), (10**30, 2), (0, 0)])
def test_integers_in_range_are_accepted(value: int, minimum: int | None) -> None:
    check_integer(Owner(), "count", value, minimum)


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "2", None, math.nan, torch.tensor(3), Fraction(2)], ids=repr)
def test_what_is_no_integer_of_at_least_one_raises(value: Any) -> None:
    with pytest.raises(ValueError, match=exactly(f"Owner count={value!r} must be an integer of at least 1")):
        check_integer(Owner(), "count", value, minimum=1)


@pytest.mark.parametrize("value", [False, 2.0, "2", None], ids=repr)
def test_what_is_no_integer_raises(value: Any) -> None:
    with pytest.raises(ValueError, match=exactly(f"draw seed={value!r} must be an integer")):
        check_integer("draw", "seed", value)


@pytest.mark.parametrize("value", [0, -3, 2.5, np.float32(0.5), Fraction(1, 3), -1e300], ids=repr)
def test_finite_numbers_are_accepted(value: Any) -> None:
    check_number(Owner(), "value", value)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, True, "1", None, 1j, [1], torch.tensor(1.0)], ids=repr
)
@pytest.mark.parametrize("limits", [{}, {"minimum": -1}, {"below": 5}, {"above": -1, "maximum": 5}], ids=str)
def test_what_is_no_finite_number_raises(value: Any, limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^Owner value=.* must be a "):
        check_number(Owner(), "value", value, **limits)


@pytest.mark.parametrize(
    ("limits", "allowed", "refused", "words"),
    [
        ({"minimum": 0}, [0, 0.5, 10], [-1e-9], "finite number of at least 0"),
        ({"above": 0}, [1e-9, 10], [0, -1], "finite number above 0"),
        ({"maximum": 2.5}, [-4, 2.5], [2.6], "finite number of at most 2.5"),
        ({"below": 2.5}, [-4, 2.4], [2.5, 3], "finite number below 2.5"),
        ({"minimum": 0, "maximum": 1}, [0, 1], [-0.1, 1.1], "number in [0, 1]"),
        ({"above": 0, "maximum": 1}, [0.1, 1], [0, 2], "number in (0, 1]"),
        ({"minimum": 0, "below": 1}, [0, 0.9], [-1, 1], "number in [0, 1)"),
        ({"above": 0, "below": 1}, [0.1, 0.9], [0, 1], "number in (0, 1)"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_limits_of_numbers(limits: dict[str, float], allowed: list[float], refused: list[float], words: str) -> None:
    for value in allowed:
        check_number(Owner(), "value", value, **limits)
    for value in refused:
        with pytest.raises(ValueError, match=exactly(f"Owner value={value!r} must be a {words}, such as 0.7")):
            check_number(Owner(), "value", value, **limits, hint="such as 0.7")


def test_shares_are_numbers_from_zero_to_one() -> None:
    for value in (0, 0.5, 1):
        check_share(Owner(), "keep", value)
    for refused in (50, -0.1, True, "half", math.nan):
        with pytest.raises(
            ValueError, match=exactly(f"Owner keep={refused!r} must be a number in [0, 1], such as 0.5 for one half")
        ):
            check_share(Owner(), "keep", refused)


@pytest.mark.parametrize("value", [0, 1, None, "True", np.True_], ids=repr)
def test_only_bools_are_flags(value: Any) -> None:
    check_flag(Owner(), "per_layer", True)
    check_flag(Owner(), "per_layer", False)
    with pytest.raises(ValueError, match=exactly(f"Owner per_layer={value!r} must be True or False")):
        check_flag(Owner(), "per_layer", value)


@pytest.mark.parametrize(
    ("choices", "words"), [(("a",), "'a'"), (("a", "b"), "'a' or 'b'"), (("a", "b", "c"), "'a', 'b' or 'c'")]
)
def test_choices_are_listed(choices: tuple[str, ...], words: str) -> None:
    check_choice(Owner(), "mode", "a", choices)
    for value in ("A", "", None, 1, ["a"]):
        with pytest.raises(ValueError, match=exactly(f"Owner mode={value!r} is not known; use {words}")):
            check_choice(Owner(), "mode", value, choices)
