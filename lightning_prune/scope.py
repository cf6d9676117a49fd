"""Scope: the modules and parameters that may be pruned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_prune.checkpoint.manifest import names_in_removed_modules
from lightning_prune.coupling.groups import Coupling, Group
from lightning_prune.network.averages import averages_in
from lightning_prune.network.names import is_inside

Owners = dict[str, nn.Module]  # every name of one parameter -> the module that registers it under this name

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class Scope:
    """Modules and parameters that may be pruned, selected by patterns on names and by types.

    A pattern (``fnmatch``, on qualified names) selects a parameter, or a module with everything in it. A shared
    parameter matches by any of its names. The outputs of the network are never pruned.

    Args:
        include: Patterns of modules and parameters that may be pruned; all by default.
        exclude: Patterns of modules and parameters that must not be pruned.
        types: Names of module classes, including base classes (``"Conv2d"``, ``"Linear"``); all types by default.
        biases_and_norms: Whether weight masks may cover biases, other vectors and the parameters of norm layers.

    Raises:
        ValueError: If an argument is not a sequence of strings, or if ``include`` is empty.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
        >>> list(Scope(exclude=["3"]).parameters(net))
        ['0.weight']
    """

    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    types: Sequence[str] = ()
    biases_and_norms: bool = False

    def __post_init__(self) -> None:
        for name in ("include", "exclude", "types"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ValueError(f"Scope {name}={value!r} must be a list of strings: [{value!r}]")
            if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"Scope {name}={value!r} must be a list of strings")
            object.__setattr__(self, name, tuple(value))
        if not self.include:
            raise ValueError("Scope include=[] matches nothing; omit it to prune everything")

    def parameters(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that masks may cover, by qualified name; frozen parameters only if ``include`` is given.

        Raises:
            ValueError: If no parameter matches, or if a pattern matches no part of ``module``.
        """
        self.check_patterns(module)
        owners, averages = _owners(module), averages_in(module)
        found = {
            name: parameter
            for name, parameter in module.named_parameters()
            if self._matches(owners[name])
            and not is_inside(name, averages)
            and (parameter.requires_grad or self.include != ("*",))
            and (self.biases_and_norms or (parameter.dim() > 1 and not _in_a_norm(owners[name])))
        }
        if not found:
            raise ValueError(f"{self} matches no parameter of {type(module).__name__}; {_names_hint(module)}")
        return found

    def groups(self, module: nn.Module, coupling: Coupling) -> tuple[dict[str, Group], dict[str, str]]:
        """Groups of channels in the scope, and for each other group the reason why it is outside.

        A group is in the scope if the layers that make its channels are; layers that only read the channels do not
        count. Groups that are pruned only together are all inside or all outside. Averaged models are outside, because
        they are pruned with the model that they average.

        Raises:
            ValueError: If no group is in the scope, or if a pattern matches no part of ``module``.
        """
        inside, outside = dict(coupling.groups), dict[str, str]()
        if self.include != ("*",) or self.exclude or self.types:
            inside, outside = self._split(module, coupling)
        averages = averages_in(module)
        for name, group in inside.items() if averages else ():
            if all(is_inside(member.tensor, averages) for member in group.members if not member.reads):
                outside[name] = "an averaged model is pruned with the model that it averages"
        outside = coupling.kept_together(outside)
        inside = {name: group for name, group in inside.items() if name not in outside}
        if not inside:
            reasons = {**coupling.frozen, **outside}
            scope = "the default Scope()" if self == Scope() else str(self)
            raise ValueError(
                f"{scope} leaves no removable channels in {type(module).__name__}; "
                f"the channels that it has must be kept: {dict(list(reasons.items())[:5])}"
            )
        return inside, outside

    def _split(self, module: nn.Module, coupling: Coupling) -> tuple[dict[str, Group], dict[str, str]]:
        """The groups that the patterns and types select, and the reason for each other group."""
        self.check_patterns(module)
        owners = _owners(module)
        inside: dict[str, Group] = {}
        outside: dict[str, str] = {}
        for name, group in coupling.groups.items():
            makers = [m.tensor for m in group.members if not m.reads and m.tensor in owners]
            excluded = next((t for t in makers if any_match(owners[t], self.exclude)), None)
            if excluded is not None:
                outside[name] = f"{excluded!r} is excluded by the scope"
            elif any(self._matches(owners[t]) for t in makers):
                inside[name] = group
            else:
                outside[name] = "outside the scope"
        return inside, outside

    def _matches(self, owners: Owners) -> bool:
        classes = {cls.__name__ for owner in owners.values() for cls in type(owner).__mro__}
        return (
            any_match(owners, self.include)
            and not any_match(owners, self.exclude)
            and (not self.types or not classes.isdisjoint(self.types))
        )

    def check_patterns(self, module: nn.Module) -> None:
        """Check that every pattern matches a part of ``module``, or of modules that were removed from it.

        Raises:
            ValueError: If a pattern matches nothing; the message names it.
        """
        names = [name for name, _ in module.named_parameters(remove_duplicate=False)] + names_in_removed_modules(module)
        for field in ("include", "exclude"):
            for pattern in getattr(self, field):
                if not any_match(names, [pattern]):
                    raise ValueError(
                        f"Scope {field}={pattern!r} matches nothing in {type(module).__name__}; {_names_hint(module)}"
                    )


def _owners(module: nn.Module) -> dict[str, Owners]:
    modules = dict(module.named_modules(remove_duplicate=False))
    owners: dict[int, Owners] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), {})[name] = modules[name.rpartition(".")[0]]
    return {name: owners[id(parameter)] for name, parameter in module.named_parameters()}


def _in_a_norm(owners: Owners) -> bool:
    return any(isinstance(owner, NORMS) for owner in owners.values())


def any_match(names: Iterable[str], patterns: Iterable[str]) -> bool:
    """Whether any of ``patterns`` matches any of ``names``, or a module that contains it."""
    return any(fnmatchcase(part, pattern) for name in names for part in _ancestry(name) for pattern in patterns)


def _ancestry(name: str) -> Iterator[str]:
    """``a.b.weight``, ``a.b`` and ``a``."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _names_hint(module: nn.Module) -> str:
    names = [name for name, child in module.named_modules() if name and not list(child.children())]
    return f"its layers are named {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
