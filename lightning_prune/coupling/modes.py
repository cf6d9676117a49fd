"""Whether train mode has to be looked at besides eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.coupling import shapes
from lightning_prune.coupling.calls import WithoutDropout
from lightning_prune.coupling.example import Example
from lightning_prune.coupling.tensors import named_modules, named_tensors, tensors_in

Operation = tuple[Any, list[tuple[int | None, torch.Size]], list[int]]  # its operands (registered ones by id), integers
_ASKED = "_lightning_prune_asked"
_COUNTING = torch.ops.aten.add_.Tensor  # batch norm counts its batches in train mode
_NOISE = frozenset(f"aten::{name}" for name in ("empty", "new_empty", "bernoulli_", "div_", "mul", "mul_"))


class ModeWatch:
    """Notes whether code asks the modules of a copy for their mode; without that, the modes cannot differ.

    PyTorch's own layers are not watched: in train mode they only add noise and gather statistics.

    Args:
        copy: The network. The classes of its modules are replaced by subclasses whose ``training`` is a property.
    """

    def __init__(self, copy: nn.Module) -> None:
        self.modules = [module for _, module in named_modules(copy)]
        self.unknown = False
        watching: dict[type, Any] = {}
        for module in self.modules:
            cls = type(module)
            if _is_plain_layer(cls):
                self.unknown |= "forward" in vars(module) or bool(module._forward_hooks or module._forward_pre_hooks)
            elif _can_be_watched(cls):
                if cls not in watching:
                    names = {"training": _TRAINING, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
                    meta: Any = type(cls)
                    watching[cls] = meta(cls.__name__, (cls,), names)
                object.__setattr__(module, "__class__", watching[cls])
            else:
                self.unknown = True

    @property
    def asked(self) -> bool:
        """Whether the modes may differ, by what has run so far."""
        return self.unknown or any(_ASKED in vars(module) for module in self.modules)


def _asked(module: nn.Module) -> bool:
    vars(module)[_ASKED] = True
    mode: bool = vars(module)["training"]
    return mode


def _set(module: nn.Module, mode: bool) -> None:
    vars(module)["training"] = mode


_TRAINING = property(_asked, _set)


def _is_plain_layer(cls: type) -> bool:
    return cls.__module__.startswith("torch.nn.modules.") and not issubclass(cls, (nn.Sequential, nn.ModuleList))


def _can_be_watched(cls: type[nn.Module]) -> bool:
    """Whether a subclass does no harm, and the mode is nothing but ``training``."""
    own = cls.__module__.split(".")[0] != "torch" or issubclass(cls, (nn.Sequential, nn.ModuleList))
    plain = all(getattr(cls, name) is getattr(nn.Module, name) for name in ("train", "eval"))
    inherited = getattr(cls.__init_subclass__, "__func__", None) is None
    return own and plain and inherited and not issubclass(cls, torch.jit.ScriptModule) and "training" not in vars(cls)


def same_but_for_noise(copy: nn.Module, example: Example) -> bool:
    """Whether train mode runs what eval mode runs, but for dropout and what multiplies by noise."""
    with WithoutDropout():
        (eval_run, eval_shapes), (train_run, train_shapes) = (_run(copy.train(mode), example) for mode in (False, True))
    rest = iter(eval_run)
    due = next(rest, None)
    for operation in train_run:
        if due is not None and due == operation:
            due = next(rest, None)
        elif operation[0]._schema.name not in _NOISE or not _has_noise(operation[1]):
            return False
    return due is None and eval_shapes == train_shapes


def _run(copy: nn.Module, example: Example) -> tuple[list[Operation], list[torch.Size]]:
    """The operations of a pass, and the shapes it returns."""
    seen = _Operations({id(tensor) for _, tensor in named_tensors(copy)})
    with seen:
        outputs = example.run(copy)
    return seen.found, [tensor.shape for tensor in tensors_in(outputs)]


class _Operations(TorchDispatchMode):
    """Notes what runs, but for the counts of batches of batch norm."""

    def __init__(self, registered: set[int]) -> None:
        super().__init__()
        self.registered = registered
        self.found: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        if func is not _COUNTING or tensors[0].is_floating_point():
            operands = [(id(t) if id(t) in self.registered else None, t.shape) for t in tensors]
            self.found.append((func, operands, list(_integers(args))))
        return shapes.run(func, args, kwargs)


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield int(value)


def _has_noise(operands: list[tuple[int | None, torch.Size]]) -> bool:
    """Whether one operand holds one number an example, as the noise of stochastic depth does, or is made just now."""
    if any(registered is not None for registered, _ in operands):
        return False
    return not operands or any(len(shape) > 1 and shape.numel() == shape[0] for _, shape in operands)
