"""What a network was built with, so that it can go back to it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor, nn

from lightning_prune.checkpoint.restore import kept_out, put_back, submodule, template_of
from lightning_prune.network.names import is_inside
from lightning_prune.network.tensors import named_modules, named_tensors
from lightning_prune.surgery.apply import remove_modules
from lightning_prune.surgery.passthrough import is_identity


class Surroundings:
    """Where a module lives; by itself it has none."""

    def manifest(self, module: nn.Module) -> Mapping[str, Any]:
        """The manifest of what is being loaded, for a state dict that has lost it."""
        return {}

    def copies(self, module: nn.Module) -> Iterable[nn.Module]:
        """Copies of ``module`` that take over its shapes."""
        return ()


@dataclass
class AsBuilt:
    """What a module was built with.

    Attributes:
        shapes: Tensor name -> shape.
        attributes: (module name, attribute) -> value, for the attributes that pruning has changed at some time.
        buffers: Name -> values, for the buffers that pruning has cut and no state dict has.
        modules: Name -> the same without values, for the modules that pruning has removed at some time.
        surroundings: Where the module lives.
    """

    shapes: dict[str, list[int]] = field(default_factory=dict)
    attributes: dict[tuple[str, str], Any] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    surroundings: Surroundings = field(default_factory=Surroundings)

    def inside(self, prefix: str) -> AsBuilt:
        """The same of the module whose names begin with ``prefix``, such as ``"net."``; empty for the whole."""
        if not prefix:
            return self
        start = len(prefix)
        return AsBuilt(
            shapes={name[start:]: shape for name, shape in self.shapes.items() if name.startswith(prefix)},
            attributes={
                (path[start:], name): value
                for (path, name), value in self.attributes.items()
                if f"{path}.".startswith(prefix)
            },
            buffers={name[start:]: values for name, values in self.buffers.items() if name.startswith(prefix)},
            modules={name[start:]: module for name, module in self.modules.items() if name.startswith(prefix)},
            surroundings=Surroundings(),
        )

    def note_shapes(self, module: nn.Module) -> None:
        """Keep the shapes of all tensors that are not known yet."""
        for path, owner in named_modules(module):  # what was pruned by itself before
            inner = dense_of(owner) if path else None
            if inner is not None:
                for name, shape in inner.shapes.items():
                    self.shapes.setdefault(f"{path}.{name}", shape)
                for (below, name), value in inner.attributes.items():
                    self.attributes.setdefault((f"{path}.{below}".rstrip("."), name), value)
                for name, values in inner.buffers.items():
                    self.buffers.setdefault(f"{path}.{name}", values)
                for name, template in inner.modules.items():
                    self.modules.setdefault(f"{path}.{name}", template)
        for name, tensor in named_tensors(module):
            self.shapes.setdefault(name, list(tensor.shape))

    def note_attributes(self, module: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep the values of these attributes as they are, unless they are known."""
        for path, values in attributes.items():
            for name in values:
                self.attributes.setdefault((path, name), getattr(module.get_submodule(path), name))

    def note_buffers(self, module: nn.Module, names: Collection[str]) -> None:
        """The same for these buffers."""
        for name, values in kept_out(module).items():
            if name in names:
                self.buffers.setdefault(name, values.detach().clone())

    def note_modules(self, module: nn.Module, names: Iterable[str]) -> None:
        """The same for these modules."""
        for name in names:
            block = submodule(module, name)
            if name not in self.modules and block is not None and not is_identity(block):
                self.modules[name] = template_of(block)

    def removed_modules_in(self, module: nn.Module) -> list[str]:
        """Names of the modules that are removed from ``module``."""
        return [name for name in self.modules if is_identity(submodule(module, name))]

    def set_removed_modules(self, module: nn.Module, names: Collection[str]) -> None:
        """Let just the modules in ``names`` be removed from ``module``; others come back."""
        for name in sorted(self.modules, key=lambda name: name.count(".")):  # what holds others comes back first
            if name not in names and is_identity(submodule(module, name)):
                put_back(module, name, self.modules[name])
        self.note_modules(module, names)
        for name in names:
            if submodule(module, name) is None:
                raise ValueError(
                    f"{name!r} was removed from the network in the file, and {type(module).__name__} has no such "
                    "module. Build it with the arguments it was trained with."
                )
        remove_modules(module, [name for name in names if not is_identity(submodule(module, name))])

    def held_by(self, name: str) -> dict[str, list[int]]:
        """The dense shapes of what the state dict of the removed module had."""
        inside = [(path, template) for path, template in self.modules.items() if is_inside(path, [name])]
        return {f"{path}.{key}": self.shapes[f"{path}.{key}"] for path, t in inside for key in t.state_dict()}

    def params_removed_from(self, module: nn.Module) -> int:
        """How many parameters the modules had that are removed from ``module``."""
        gone = self.removed_modules_in(module)
        inside = [(path, template) for path, template in self.modules.items() if is_inside(path, gone)]
        names = {f"{path}.{key}" for path, template in inside for key, _ in template.named_parameters()}
        return sum(prod(self.shapes[name]) for name in names)


def dense_of(module: nn.Module) -> AsBuilt | None:
    """What is known of a tracked module; None where it is not tracked."""
    found = (getattr(hook, "dense", None) for hook in module._state_dict_hooks.values())
    return next((dense for dense in found if isinstance(dense, AsBuilt)), None)
