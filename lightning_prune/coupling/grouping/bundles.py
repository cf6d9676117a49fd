"""Groups whose sizes are coupled by integers in the code, and attributes that depend on the sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd

from lightning_prune.coupling.groups import Bundle
from lightning_prune.coupling.symbols.sizes import (
    Attribute,
    Equation,
    Expression,
    attributes_in,
    evaluate,
    groups_in,
    rewritten,
    solved_for,
)


def solve_attributes(equations: Sequence[Equation], values: Mapping[Attribute, int]) -> dict[Attribute, Expression]:
    """Solve ``equations`` for the attributes in them.

    Args:
        equations: Expressions that must stay equal.
        values: The values of the attributes in the analyzed network.

    Returns:
        Every attribute as an expression of the widths; a constant where it does not depend on them.
    """
    known: dict[Attribute, Expression] = {}
    pairs = [pair for e in equations for pair in ((e.left, e.right), (e.right, e.left))]
    for bare in (True, False):  # an attribute alone is more reliable than arithmetic that must be inverted
        progress = True
        while progress:
            progress = False
            for side, other in pairs:
                unknown = {a for part in (side, other) for a in attributes_in(part)} - known.keys()
                if len(unknown) != 1 or (bare and not isinstance(side, Attribute)):
                    continue
                (attribute,) = unknown
                if attribute in attributes_in(other):
                    continue
                solution = solved_for(attribute, side, other)
                if solution is not None:
                    solution = _substituted(solution, known)
                    if _value(solution) == values[attribute]:
                        known[attribute] = solution
                        progress = True
    unsolved = {a for e in equations for part in (e.left, e.right) for a in attributes_in(part)} - known.keys()
    return {**known, **{attribute: values[attribute] for attribute in unsolved}}


def _substituted(expression: Expression, known: Mapping[Attribute, Expression]) -> Expression:
    return rewritten(expression, lambda leaf: known.get(leaf, leaf) if isinstance(leaf, Attribute) else leaf)


def _value(expression: Expression, removed: Mapping[str, int] | None = None) -> int | None:
    try:
        return evaluate(expression, removed or {})
    except ZeroDivisionError:
        return None


def find_bundles(
    sizes: Mapping[str, int], equations: Sequence[Equation], attributes: Mapping[Attribute, Expression]
) -> tuple[tuple[Bundle, ...], dict[str, str]]:
    """Bundles of groups that shrink together, and the groups that cannot shrink.

    Args:
        sizes: Group name -> number of units.
        equations: Expressions that must stay equal.
        attributes: The attributes as expressions of the widths.

    Returns:
        The bundles, and group name -> reason for the groups that cannot shrink.
    """
    resolved = [
        Equation(_substituted(e.left, attributes), _substituted(e.right, attributes), e.where) for e in equations
    ]
    relevant = [(e, frozenset(groups_in(e.left)) | frozenset(groups_in(e.right))) for e in resolved]
    relevant = [(e, groups) for e, groups in relevant if groups]
    stuck: dict[str, str] = {}
    while True:
        bundles, found = _bundles({n: s for n, s in sizes.items() if n not in stuck}, relevant)
        if not found:
            return bundles, stuck
        stuck.update(found)


def _bundles(
    sizes: Mapping[str, int], relevant: Sequence[tuple[Equation, frozenset[str]]]
) -> tuple[tuple[Bundle, ...], dict[str, str]]:
    parent = {name: name for name in sizes}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    violated: list[tuple[Equation, set[str]]] = []
    for equation, groups in relevant:
        own = {name for name in groups if name in sizes}
        if all(_holds(equation, {name: removed}) for name in own for removed in _probes(sizes[name])):
            continue
        violated.append((equation, own))
        first, *others = sorted(own)
        for other in others:
            parent[root(other)] = root(first)
    bundles, stuck = [], {}
    for top in dict.fromkeys(root(name) for _, own in violated for name in sorted(own)):
        names = [name for name in sizes if root(name) == top]
        coupled = [(equation, own) for equation, own in violated if root(next(iter(own))) == top]
        quantum = _quantum({name: sizes[name] for name in names}, [equation for equation, _ in coupled])
        if quantum is not None:
            bundles.append(Bundle(quantum, f"{_at(coupled[0][0])}forward ties their sizes"))
            continue
        step = _proportional({name: sizes[name] for name in names})
        for equation, own in coupled:
            if not _holds(equation, step):
                stuck.update(dict.fromkeys(sorted(own), _reason(equation, sizes)))
        if not any(name in stuck for name in names):
            stuck.update(
                dict.fromkeys(names, f"{_at(coupled[0][0])}the numbers in the code allow no common smaller width")
            )
    return tuple(bundles), stuck


def _probes(size: int) -> set[int]:
    """Numbers of removed units at which an equation is tested."""
    return {removed for removed in (1, 2, 3, size // 2, size - 1) if 0 < removed < size}


def _holds(equation: Equation, removed: Mapping[str, int]) -> bool:
    left = _value(equation.left, removed)
    return left is not None and left == _value(equation.right, removed)


def _proportional(sizes: Mapping[str, int]) -> dict[str, int]:
    common = gcd(*sizes.values())
    return {name: size // common for name, size in sizes.items()}


def _quantum(sizes: Mapping[str, int], equations: Sequence[Equation]) -> dict[str, int] | None:
    """The fewest units of every group that can be removed together such that ``equations`` hold at every width."""
    common = gcd(*sizes.values())
    for parts in range(1, common):
        steps, remainder = divmod(common, parts)
        if remainder:
            continue
        quantum = {name: size // steps for name, size in sizes.items()}
        widths = [{name: units * step for name, units in quantum.items()} for step in range(1, steps)]
        if all(_holds(equation, removed) for equation in equations for removed in widths):
            return quantum
    return None


def _at(equation: Equation) -> str:
    return f"{equation.where!r}: " if equation.where else ""


def _reason(equation: Equation, sizes: Mapping[str, int]) -> str:
    """Why ``equation`` does not hold with fewer units of the groups in ``sizes``."""
    sides = [(side, groups_in(side)) for side in (equation.left, equation.right)]
    for side, names in sides:
        if not any(name in sizes for name in names):
            owner = f"of {names[0]!r}" if names else "elsewhere"
            return f"{_at(equation)}forward needs the size {_value(side)} {owner}, which stays"
    listed = " and ".join(dict.fromkeys(repr(name) for _, names in sides for name in names))
    return f"{_at(equation)}forward computes with the sizes of {listed}, which cannot shrink together"
