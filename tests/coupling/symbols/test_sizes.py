"""Integers with their origin: arithmetic as of ``int``, and the expressions that it gives."""

import copy
import operator
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_prune.coupling.symbols.sizes import (
    Attribute,
    Equation,
    Expression,
    LinearDim,
    Operation,
    SizeOf,
    attributes_in,
    evaluate,
    groups_in,
    rewritten,
    sizes_in,
    solved_for,
)
from lightning_prune.coupling.symbols.traced_ints import SizeEquations, TracedInt

A, B = Attribute("net", "a"), Attribute("net", "b")
OPERATORS: dict[str, Callable[[int, int], int]] = {
    name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod")
}


def number(value: int, expression: Expression = A, size_equations: SizeEquations | None = None) -> TracedInt:
    return TracedInt(value, expression, SizeEquations() if size_equations is None else size_equations)


def value_of(expression: Expression, values: dict[Attribute, int]) -> int:
    """Independent of ``evaluate``: by recursion over the tree."""
    if isinstance(expression, Operation):
        return expression.function(value_of(expression.left, values), value_of(expression.right, values))
    return values[expression] if isinstance(expression, Attribute) else expression


@given(st.lists(st.tuples(st.sampled_from(sorted(OPERATORS)), st.booleans(), st.integers(-9, 9)), max_size=8))
def test_arithmetic_equals_that_of_int_and_keeps_the_expression(steps) -> None:
    size_equations = SizeEquations()
    plain, found = 12, number(12, A, size_equations)
    for name, swapped, other in steps:
        operands = (other, plain) if swapped else (plain, other)
        try:
            expected = OPERATORS[name](*operands)
        except ZeroDivisionError:
            with pytest.raises(ZeroDivisionError):
                OPERATORS[name](other, found) if swapped else OPERATORS[name](found, other)
            continue
        found = OPERATORS[name](other, found) if swapped else OPERATORS[name](found, other)
        plain = expected
        assert isinstance(found, TracedInt)
        assert int(found) == plain
        assert found.size_equations is size_equations
    assert value_of(found.expression, {A: 12}) == plain
    assert set(attributes_in(found.expression)) == {A}


@given(st.integers(-20, 20), st.integers(-20, 20), st.sampled_from(sorted(OPERATORS)))
def test_two_numbers(a, b, name) -> None:
    size_equations = SizeEquations()
    if name in ("floordiv", "mod") and b == 0:
        return
    found = OPERATORS[name](number(a, A, size_equations), number(b, B, size_equations))
    assert int(found) == OPERATORS[name](a, b)
    assert value_of(found.expression, {A: a, B: b}) == int(found)
    assert value_of(found.expression, {A: a, B: b}) == evaluate(
        rewritten(found.expression, lambda leaf: {A: a, B: b}[leaf]), {}
    )


@pytest.mark.parametrize(
    "loses",
    [int, float, lambda n: n / 2, lambda n: n * 0.5, lambda n: n**2, lambda n: -n, lambda n: n + True, str, bool, abs],
)
def test_which_operations_lose_the_expression(loses) -> None:
    found = loses(number(12))
    assert found == loses(12)
    assert type(found) is type(loses(12))


def test_numbers_are_integers_everywhere_else() -> None:
    twelve = number(12)
    assert f"{twelve} {twelve:03d}" == "12 012"
    assert [0] * twelve == [0] * 12
    assert list(range(twelve)) == list(range(12))
    assert {12: "found"}[twelve] == "found"
    assert {twelve: "found"}[12] == "found"
    assert torch.zeros(twelve, 2).shape == (12, 2)
    assert isinstance(twelve, int)
    assert divmod(twelve, 5) == (2, 2)
    assert (twelve < 13, twelve >= 12, min(twelve, 14)) == (True, True, 12)


def test_copies_and_files() -> None:
    twelve = number(12)
    assert copy.deepcopy(twelve) is twelve
    assert type(pickle.loads(pickle.dumps(twelve))) is int
    assert pickle.loads(pickle.dumps([twelve])) == [12]


def test_comparing_equal_numbers_records_an_equation() -> None:
    size_equations = SizeEquations()
    size_equations.where = "blocks.0"
    a, b = number(12, A, size_equations), number(12, B, size_equations)
    assert a == b
    assert [(e.left, e.right, e.where) for e in size_equations.equations] == [(A, B, "blocks.0")]
    assert a != number(13, B, size_equations)
    assert not (a != b)  # noqa: SIM202  (the operator is what is tested)
    assert len(size_equations.equations) == 2
    assert a == a
    assert a == 12
    assert 12 == a  # noqa: SIM300
    assert a != "12"
    assert (a == None) is False  # noqa: E711
    assert len(size_equations.equations) == 2  # constants and what is no number say nothing


def test_numbers_of_another_trace_are_constants() -> None:
    size_equations, other = SizeEquations(), SizeEquations()
    found = number(12, A, size_equations) + number(3, B, other)
    assert list(attributes_in(found.expression)) == [A]
    assert value_of(found.expression, {A: 12}) == 15
    assert other.expression(number(12, A, size_equations)) == 12
    size_equations.equate(number(12, A, other), 12)
    assert size_equations.equations == []
    size_equations.equate(number(12, A, size_equations), True)
    size_equations.equate(number(12, A, size_equations), "twelve")
    assert size_equations.equations == []
    size_equations.equate(number(12, A, size_equations), 12)  # a constant: the attribute must stay
    assert [(e.left, e.right) for e in size_equations.equations] == [(A, 12)]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dim, self.sizes, self.window = 12, (4, 8), [7, 7]
        self.flag, self.rate, self.text, self.mixed = True, 0.5, "12", (4, 0.5)
        self._hidden, self.empty, self.nothing = 12, (), None
        self.nested = {"dim": 12}
        self.linear = nn.Linear(3, 4)
        self.norm = nn.InstanceNorm2d(5)
        self.affine = nn.InstanceNorm2d(5, affine=True)
        self.attention = nn.MultiheadAttention(12, 3)
        self.inside = nn.ModuleList([nn.Sequential(nn.Conv2d(1, 2, 1))])


def test_which_attributes_are_tagged() -> None:
    size_equations, outer = SizeEquations(), nn.ModuleDict({"a": Layer(), "b": Layer()})
    outer["a"].inside.append(Layer())
    size_equations.tag_attributes(outer)
    own = {("dim", None): 12, ("sizes", 0): 4, ("sizes", 1): 8, ("window", 0): 7, ("window", 1): 7}
    expected = {Attribute(path, *key): value for path in ("a", "b", "a.inside.1") for key, value in own.items()}
    norms = {Attribute(f"{path}.norm", "num_features"): 5 for path in ("a", "b", "a.inside.1")}
    assert size_equations.values == {**expected, **norms}
    layer = outer["a"]
    assert isinstance(layer.dim, TracedInt)
    assert (type(layer.sizes), type(layer.window)) == (tuple, list)
    assert (layer.dim, layer.sizes, layer.window) == (12, (4, 8), [7, 7])
    assert layer.sizes[1].expression == Attribute("a", "sizes", 1)
    for name in ("flag", "_hidden"):
        assert not isinstance(getattr(layer, name), TracedInt)
    assert type(layer.linear.in_features) is int
    assert type(layer.training) is bool


def sample_tree() -> Expression:
    """(a · 3 + b) // 2 − size."""
    size = SizeOf(np.arange(5))
    return Operation(
        operator.sub,
        Operation(operator.floordiv, Operation(operator.add, Operation(operator.mul, A, 3), B), 2),
        size,
    )


def test_leaves_of_an_expression() -> None:
    tree = sample_tree()
    assert list(attributes_in(tree)) == [A, B]
    assert [len(size.ids) for size in sizes_in(tree)] == [5]
    assert list(groups_in(tree)) == []
    width = LinearDim(5, {"g": 1.0, "h": 2.0})
    resolved = rewritten(tree, lambda leaf: width if isinstance(leaf, SizeOf) else 4 if leaf == A else leaf)
    assert list(groups_in(resolved)) == ["g", "h"]
    assert list(attributes_in(resolved)) == [B]
    full = rewritten(resolved, lambda leaf: 6 if leaf == B else leaf)
    assert evaluate(full, {}) == (4 * 3 + 6) // 2 - 5
    assert evaluate(full, {"g": 2, "h": 1, "other": 9}) == 9 - (5 - 2 - 2)


def test_division_by_a_size_of_zero() -> None:
    expression = Operation(operator.floordiv, 12, LinearDim(4, {"g": 1}))
    assert evaluate(expression, {"g": 1}) == 4
    with pytest.raises(ZeroDivisionError):
        evaluate(expression, {"g": 4})


@pytest.mark.parametrize(
    ("expression", "result", "solution"),
    [
        (A, 6, 6),
        (Operation(operator.mul, A, 3), 6, 2),
        (Operation(operator.mul, 3, A), 6, 2),
        (Operation(operator.floordiv, A, 3), 2, 6),
        (Operation(operator.floordiv, 24, A), 4, 6),
        (Operation(operator.add, A, 3), 9, 6),
        (Operation(operator.add, 3, A), 9, 6),
        (Operation(operator.sub, A, 3), 3, 6),
        (Operation(operator.sub, 9, A), 3, 6),
        (Operation(operator.add, Operation(operator.mul, 2, Operation(operator.sub, A, 1)), 5), 15, 6),
    ],
)
def test_solved_by_hand(expression, result, solution) -> None:
    found = solved_for(A, expression, result)
    assert evaluate(found, {}) == solution
    assert value_of(expression, {A: solution}) == result


@pytest.mark.parametrize(
    "expression",
    [Operation(operator.mod, A, 3), Operation(operator.mul, A, A), B, 7, Operation(operator.mul, B, 3)],
)
def test_what_cannot_be_solved(expression) -> None:
    assert solved_for(A, expression, 6) is None


@given(st.integers(1, 9), st.lists(st.tuples(st.sampled_from(["add", "sub", "mul"]), st.booleans(), st.integers(1, 5))))
def test_solutions_invert_arithmetic_without_remainders(value, steps) -> None:
    expression: Expression = A
    for name, swapped, other in steps:
        expression = Operation(OPERATORS[name], *((other, expression) if swapped else (expression, other)))
    assert evaluate(solved_for(A, expression, value_of(expression, {A: value})), {}) == value


def test_widths_by_hand() -> None:
    width = LinearDim(20, {"g": 2.0, "h": 0.5})
    assert width.after({}) == 20
    assert width.after({"g": 3, "h": 4, "unknown": 5}) == 12
    assert Equation(A, 3, "x") == Equation(A, 3, "x")
