"""Checks of arguments: integers, numbers, flags and choices.

All of them raise ``ValueError`` with the owner of the argument, its name, the given value and what is allowed. The
owner is named by its class, or by a string where a function takes the argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite
from numbers import Real


def check_integer(owner: object, name: str, value: object, minimum: int | None = None) -> None:
    """Check that an argument is an integer of at least ``minimum``; bools are refused.

    Args:
        owner: The object that takes the argument, or a name to use in the message.
        name: Name of the argument.
        value: The given value.
        minimum: The smallest allowed value; None allows all integers.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_integer("Rounds", "count", 0, minimum=1)
        Traceback (most recent call last):
        ...
        ValueError: Rounds count=0 must be an integer of at least 1
    """
    if isinstance(value, bool) or not isinstance(value, int) or (minimum is not None and value < minimum):
        at_least = "" if minimum is None else f" of at least {minimum}"
        raise ValueError(f"{_given(owner, name, value)} must be an integer{at_least}")


def check_number(
    owner: object,
    name: str,
    value: object,
    *,
    minimum: float = -inf,
    above: float = -inf,
    maximum: float = inf,
    below: float = inf,
    hint: str = "",
) -> None:
    """Check that an argument is a finite number within the given limits; bools are refused.

    Args:
        owner: The object that takes the argument, or a name to use in the message.
        name: Name of the argument.
        value: The given value.
        minimum: The smallest allowed value.
        above: A limit that the value must exceed.
        maximum: The largest allowed value.
        below: A limit that the value must stay below.
        hint: Ends the message: a unit, or a value that is allowed, such as ``"such as 0.5"``.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_number("Supermask", "momentum", 1.0, minimum=0, below=1)
        Traceback (most recent call last):
        ...
        ValueError: Supermask momentum=1.0 must be a number in [0, 1)
        >>> check_number("Features", "weight", -1, minimum=0, hint="such as 0.5")
        Traceback (most recent call last):
        ...
        ValueError: Features weight=-1 must be a finite number of at least 0, such as 0.5
    """
    number = isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
    if not (number and minimum <= value <= maximum and above < value < below):  # type: ignore[operator]
        allowed = _interval(minimum, above, maximum, below)
        raise ValueError(f"{_given(owner, name, value)} must be a {allowed}{f', {hint}' if hint else ''}")


def check_share(owner: object, name: str, value: object) -> None:
    """Check that an argument is a share, a number in [0, 1].

    Args:
        owner: The object that takes the argument, or a name to use in the message.
        name: Name of the argument.
        value: The given value.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_share("MACs", "keep", 50)
        Traceback (most recent call last):
        ...
        ValueError: MACs keep=50 must be a number in [0, 1], such as 0.5 for one half
    """
    check_number(owner, name, value, minimum=0, maximum=1, hint="such as 0.5 for one half")


def check_flag(owner: object, name: str, value: object) -> None:
    """Check that an argument is True or False.

    Args:
        owner: The object that takes the argument, or a name to use in the message.
        name: Name of the argument.
        value: The given value.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{_given(owner, name, value)} must be True or False")


def check_choice(owner: object, name: str, value: object, choices: Sequence[str]) -> None:
    """Check that an argument is one of some strings.

    Args:
        owner: The object that takes the argument, or a name to use in the message.
        name: Name of the argument.
        value: The given value.
        choices: The allowed strings, such as ``get_args`` returns them for a ``Literal``.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_choice("Rounds", "unit", "day", ("epoch", "step", "share"))
        Traceback (most recent call last):
        ...
        ValueError: Rounds unit='day' is not known; use 'epoch', 'step' or 'share'
    """
    if not isinstance(value, str) or value not in choices:
        *first, last = map(repr, choices)
        allowed = f"{', '.join(first)} or {last}" if first else last
        raise ValueError(f"{_given(owner, name, value)} is not known; use {allowed}")


def _given(owner: object, name: str, value: object) -> str:
    return f"{owner if isinstance(owner, str) else type(owner).__name__} {name}={value!r}"


def _interval(minimum: float, above: float, maximum: float, below: float) -> str:
    """The allowed numbers in words, or as an interval where both ends are given."""
    lower, upper = max(minimum, above), min(maximum, below)
    opening, closing = "(" if above >= minimum else "[", ")" if below <= maximum else "]"
    if lower > -inf and upper < inf:
        return f"number in {opening}{lower:g}, {upper:g}{closing}"
    if lower > -inf:
        return f"finite number {'above' if opening == '(' else 'of at least'} {lower:g}"
    if upper < inf:
        return f"finite number {'below' if closing == ')' else 'of at most'} {upper:g}"
    return "finite number"
