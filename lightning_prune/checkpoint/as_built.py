"""What a network was built as: shapes, attributes, buffers and modules before pruning, so that they can be restored."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor, nn

from lightning_prune.checkpoint.restore import non_persistent_buffers, restore_module, submodule, template_of
from lightning_prune.network.names import is_inside
from lightning_prune.network.tensors import named_modules, named_tensors
from lightning_prune.surgery.apply import remove_modules
from lightning_prune.surgery.passthrough import is_identity


class Surroundings:
    """Context of a tracked module: the file that is being loaded into it, and its copies. This one has neither."""

    def manifest(self, module: nn.Module) -> Mapping[str, Any]:
        """The manifest of the file that is being loaded, for a state dict without one."""
        return {}

    def copies(self, module: nn.Module) -> Iterable[nn.Module]:
        """Copies of ``module`` that have to take over its shapes."""
        return ()


@dataclass
class AsBuilt:
    """What a module was built as, before anything was pruned.

    Attributes:
        shapes: Tensor name -> shape.
        attributes: (module name, attribute) -> value, for the attributes that pruning has changed at some time.
        buffers: Name -> values, for the non-persistent buffers that pruning has cut at some time.
        modules: Name -> copy on the meta device, for the modules that pruning has removed at some time.
        surroundings: Context of the module: the file that is being loaded, and its copies.
    """

    shapes: dict[str, list[int]] = field(default_factory=dict)
    attributes: dict[tuple[str, str], Any] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    surroundings: Surroundings = field(default_factory=Surroundings)

    def inside(self, prefix: str) -> AsBuilt:
        """The records of the submodule whose names begin with ``prefix``, such as ``"net."``; all for an empty one."""
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

    def record_shapes(self, module: nn.Module) -> None:
        """Record the shapes of all tensors without a record."""
        for path, owner in named_modules(module):  # submodules that were tracked and pruned by themselves before
            inner = as_built_of(owner) if path else None
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

    def record_attributes(self, module: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
        """Record the present values of these attributes, unless there is a record."""
        for path, values in attributes.items():
            for name in values:
                self.attributes.setdefault((path, name), getattr(module.get_submodule(path), name))

    def record_buffers(self, module: nn.Module, names: Collection[str]) -> None:
        """Record the present values of the non-persistent buffers in ``names``, unless there is a record."""
        for name, values in non_persistent_buffers(module).items():
            if name in names:
                self.buffers.setdefault(name, values.detach().clone())

    def record_modules(self, module: nn.Module, names: Iterable[str]) -> None:
        """Record copies of these modules, unless there is a record or the module is removed already."""
        for name in names:
            block = submodule(module, name)
            if name not in self.modules and block is not None and not is_identity(block):
                self.modules[name] = template_of(block)

    def removed_modules_in(self, module: nn.Module) -> list[str]:
        """Names of the modules that are at present removed from ``module``."""
        return [name for name in self.modules if is_identity(submodule(module, name))]

    def set_removed_modules(self, module: nn.Module, names: Collection[str]) -> None:
        """Remove the modules in ``names`` from ``module``, and restore all others that were removed.

        Raises:
            ValueError: If ``module`` has no such module.
        """
        for name in sorted(self.modules, key=lambda name: name.count(".")):  # outer modules before inner ones
            if name not in names and is_identity(submodule(module, name)):
                restore_module(module, name, self.modules[name])
        self.record_modules(module, names)
        for name in names:
            if submodule(module, name) is None:
                raise ValueError(
                    f"{name!r} was removed from the network in the file, but {type(module).__name__} has no such "
                    "module. Build it with the arguments it was trained with."
                )
        remove_modules(module, [name for name in names if not is_identity(submodule(module, name))])

    def shapes_in_removed(self, name: str) -> dict[str, list[int]]:
        """Tensor name -> dense shape, for the entries that the state dict of a removed module had."""
        inside = [(path, template) for path, template in self.modules.items() if is_inside(path, [name])]
        return {f"{path}.{key}": self.shapes[f"{path}.{key}"] for path, t in inside for key in t.state_dict()}

    def params_removed_from(self, module: nn.Module) -> int:
        """Number of parameters in the modules that are at present removed from ``module``."""
        removed = self.removed_modules_in(module)
        inside = [(path, template) for path, template in self.modules.items() if is_inside(path, removed)]
        names = {f"{path}.{key}" for path, template in inside for key, _ in template.named_parameters()}
        return sum(prod(self.shapes[name]) for name in names)


def as_built_of(module: nn.Module) -> AsBuilt | None:
    """The records of a tracked module; None where it is not tracked."""
    found = (getattr(hook, "as_built", None) for hook in module._state_dict_hooks.values())
    return next((as_built for as_built in found if isinstance(as_built, AsBuilt)), None)
