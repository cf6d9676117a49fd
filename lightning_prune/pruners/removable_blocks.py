"""Removable blocks: the modules of a network that an identity can replace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from lightning_prune.network.averages import averages_in
from lightning_prune.network.example_input import Example, run_on_copy
from lightning_prune.network.module_calls import ModuleCall, record_module_calls, shapes_of
from lightning_prune.network.names import is_inside
from lightning_prune.network.tensors import named_modules
from lightning_prune.scope import NORMS, Scope, any_match
from lightning_prune.surgery.apply import remove_modules


@dataclass(frozen=True)
class Cost:
    """Cost of a module.

    Attributes:
        params: Number of its parameters.
        macs: Multiply-accumulates in it for one example.
    """

    params: int
    macs: int


@dataclass(frozen=True)
class Removable:
    """Modules that can be removed from a network, by name, in the order of the network.

    Attributes:
        fits: Name -> cost, of every module that an identity can replace; some are inside others.
        blocks: Those of them that are removed by default: blocks and whole layers, none inside another.
        frozen: Name -> why it cannot be removed, of the other blocks and layers.
        misfits: Name -> why it cannot be removed, of all other modules that hold weights.
        whole: Cost of the network.
    """

    fits: Mapping[str, Cost]
    blocks: Sequence[str]
    frozen: Mapping[str, str]
    misfits: Mapping[str, str]
    whole: Cost

    def within(self, scope: Scope, model: nn.Module) -> tuple[list[str], dict[str, str]]:
        """Names of the blocks in ``scope``, and the reason for each other block.

        A pattern that matches none of the blocks selects the modules with matching names that can be removed.
        """
        classes = {name: {cls.__name__ for cls in type(below).__mro__} for name, below in named_modules(model)}
        allowed = [n for n in self.fits if not scope.types or not classes[n].isdisjoint(scope.types)]
        blocks = [name for name in self.blocks if name in allowed]
        picked: set[str] = set()
        for pattern in scope.include:
            found = [name for name in blocks if any_match([name], [pattern])]
            named = [] if pattern == "*" else [name for name in allowed if fnmatchcase(name, pattern)]
            picked.update(found or outermost(named))
        outside = {name: "outside the scope" for name in self.blocks if not is_inside(name, picked)}
        for name in picked:
            held = [name, *(f"{name}.{key}" for key, _ in model.get_submodule(name).named_parameters())]
            kept = next((pattern for pattern in scope.exclude if any_match(held, [pattern])), None)
            if kept is not None:
                outside[name] = f"the scope excludes {kept!r}"
        names = outermost([name for name in self.fits if name in picked and name not in outside])
        return names, {**self.frozen, **outside}


def find_removable(model: nn.Module, example: Example) -> Removable:
    """Find the modules of ``model`` that can be removed, by one forward pass in eval mode.

    A module that holds weights can be removed if the pass calls it once, if it returns one tensor of the shape and
    dtype of its first argument, if it shares nothing with the rest of the network, and if the network runs without it.
    Blocks are the outermost modules of a kind that occurs more than once; containers that only chain such blocks are
    not. Modules with a single weight tensor, such as a convolution, alone or with its norm and activation, are layers;
    they are included where they lie in no such block.
    """
    weights = {name: _weight_layers(below) for name, below in named_modules(model)}
    averages = averages_in(model)
    held = {name: below for name, below in named_modules(model) if name and weights[name] and not _in(name, averages)}
    calls, macs, shapes = run_on_copy(model, example, lambda copy, inputs: record_module_calls(copy, inputs, held))
    reasons = {name: _why_not(model, name, calls.get(name, [])) for name in held}
    fitting = [name for name in held if reasons[name] is None]
    if _failure(model, example, outermost(fitting), shapes) or _failure(model, example, _inner(fitting), shapes):
        reasons.update({name: _failure(model, example, [name], shapes) for name in fitting})
    kinds = {name: _kind(below) for name, below in held.items()}
    counts = Counter(kind for name, kind in kinds.items() if weights[name] > 1)
    stages = {kinds[name] for name in held if _chains_blocks(held[name])}
    repeated = [name for name in held if counts[kinds[name]] > 1 and kinds[name] not in stages]
    units = outermost([name for name in held if name in calls and (name in repeated or weights[name] == 1)])
    return Removable(
        fits={n: Cost(_params(held[n]), calls[n][0].macs) for n in held if reasons[n] is None},
        blocks=[name for name in units if reasons[name] is None],
        frozen={name: why for name in units if (why := reasons[name]) is not None},
        misfits={name: why for name, why in reasons.items() if why is not None},
        whole=Cost(_params(model), macs),
    )


def why_it_fails(model: nn.Module, example: Example, names: Sequence[str]) -> dict[str, str]:
    """Name -> why it cannot be removed, of the modules ``names``; empty if the network runs without all of them.

    If each can be removed, but not all together, the last one is returned.
    """
    shapes = run_on_copy(model, example, lambda copy, inputs: shapes_of(inputs.run(copy.eval())))
    failure = _failure(model, example, names, shapes)
    if failure is None:
        return {}
    single = {name: why for name in names if (why := _failure(model, example, [name], shapes)) is not None}
    return single or {names[-1]: f"together with others: {failure}"}


def outermost(names: Sequence[str]) -> list[str]:
    """Those of ``names`` that are not inside another one."""
    known = set(names)
    return [name for name in names if not any(path in known for path in _above(name))]


def _why_not(model: nn.Module, name: str, calls: Sequence[ModuleCall]) -> str | None:
    """Why the module cannot be replaced, by its calls and parameters; None if there is no such reason."""
    if len(calls) != 1:
        return f"a forward pass calls it {len(calls)} times" if calls else "a forward pass does not call it"
    if calls[0].misfit is not None:
        return calls[0].misfit
    block = model.get_submodule(name)
    own = {id(below) for below in block.modules()}
    paths = [path for path, below in model.named_modules(remove_duplicate=False) if id(below) in own]
    other = next((path for path in paths if not is_inside(path, [name])), None)
    if other is not None:
        return f"the network contains it, or a part of it, also under the name {other!r}"
    inside = {id(parameter) for parameter in block.parameters()}
    everywhere = list(model.named_parameters(remove_duplicate=False))
    shared = next((n for n, p in everywhere if id(p) in inside and not is_inside(n, [name])), None)
    if shared is not None:
        return f"it shares a parameter with {shared!r}"
    if all(id(parameter) in inside for _, parameter in everywhere):
        return "it holds all parameters of the network"
    return None


def _failure(model: nn.Module, example: Example, names: Collection[str], shapes: Sequence[Any]) -> str | None:
    """Why the network fails without the modules ``names``; None if all outputs keep their ``shapes``."""

    def run(copy: nn.Module, inputs: Example) -> Sequence[Any]:
        remove_modules(copy, names)
        return shapes_of(inputs.run(copy.eval()))

    if not names:
        return None
    try:
        found = run_on_copy(model, example, run)
    except Exception as error:
        return f"the forward pass fails without it: {error}"
    return None if found == shapes else f"without it the network returns {found} instead of {shapes}"


def _inner(names: Sequence[str]) -> list[str]:
    """Those of ``names`` that contain no other one."""
    above = {path for name in names for path in _above(name)}
    return [name for name in names if name not in above]


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _weight_layers(module: nn.Module) -> int:
    """Number of modules in it that hold a matrix or a kernel; norms hold none."""
    return sum(
        not isinstance(below, NORMS) and any(p is not None and p.dim() > 1 for p in below._parameters.values())
        for below in module.modules()
    )


def _kind(module: nn.Module) -> Any:
    """Its class; for a plain container also the classes of its content."""
    if type(module) in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
        return (type(module), *(_kind(child) for child in module.children()))
    return type(module)


def _chains_blocks(module: nn.Module) -> bool:
    """Whether it contains a sequence with two modules of the same kind, of more than one layer each."""
    for below in module.modules():
        if isinstance(below, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            kinds = Counter(_kind(child) for child in below.children() if _weight_layers(child) > 1)
            if any(count > 1 for count in kinds.values()):
                return True
    return False


def _in(name: str, paths: Collection[str]) -> bool:
    return name in paths or any(path in paths for path in _above(name))


def _above(name: str) -> Iterator[str]:
    """``a.b`` and ``a`` of ``a.b.c``."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
