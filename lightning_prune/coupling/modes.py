"""Whether train mode has to be looked at besides eval mode."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache, partial
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.coupling import shapes
from lightning_prune.coupling.calls import WithoutDropout
from lightning_prune.coupling.example import Example
from lightning_prune.coupling.tensors import named_modules, tensors_in

Operation = tuple[Any, list[tuple[int | None, torch.Size]]]  # and its operands: which parameter, and the shape
_COUNTING = torch.ops.aten.add_.Tensor
_NOISE = frozenset(f"aten::{name}" for name in ("empty", "new_empty", "bernoulli_", "div_", "mul", "mul_"))


def depends_on_mode(model: nn.Module) -> bool:
    """Whether any code but PyTorch's own may run other operations in train mode than in eval mode.

    PyTorch's layers only add noise and gather statistics. For other modules their code is read: methods and functions
    that never say ``training`` cannot tell the modes apart.
    """
    return any(_may_depend(module) for _, module in named_modules(model))


def _may_depend(module: nn.Module) -> bool:
    own = vars(module)
    if "forward" in own or module._forward_hooks or module._forward_pre_hooks:
        return True
    if type(module).__module__.startswith("torch.nn.modules."):
        return False
    kept = (value for value in own.values() if callable(value) and not isinstance(value, type))
    return _class_mentions(type(module)) or any(_mentions(value, set()) for value in kept)  # type: ignore[arg-type]


@cache
def _class_mentions(cls: type[nn.Module]) -> bool:
    owners = [owner for owner in cls.__mro__ if owner not in (nn.Module, object)]
    members = [getattr(value, "fget", value) for owner in owners for value in vars(owner).values()]
    seen: set[FunctionType] = set()
    return any(_mentions(member, seen) for member in members if callable(member) and not isinstance(member, type))


def _mentions(function: Any, seen: set[FunctionType]) -> bool:
    """Whether the code behind a callable, or a function that it calls by name, has the word ``training`` in it."""
    if isinstance(function, partial):
        return _mentions(function.func, seen)
    function = inspect.unwrap(getattr(function, "__func__", function))
    home = getattr(function, "__module__", None) or "torch"
    if function in seen or (home.split(".")[0] == "torch" and not home.startswith("torch.nn.utils.")):
        return False
    if not isinstance(function, FunctionType):
        return True  # an object with code of its own
    seen.add(function)
    words = set(_words(function.__code__))
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    called = [*cells, *(function.__globals__.get(word) for word in words)]
    return "training" in words or any(_mentions(other, seen) for other in called if isinstance(other, FunctionType))


def _words(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _words(constant)


def same_but_for_noise(copy: nn.Module, example: Example) -> bool:
    """Whether train mode runs what eval mode runs, but for dropout and what multiplies by noise."""
    with WithoutDropout():
        (eval_run, eval_shapes), (train_run, train_shapes) = (_run(copy.train(mode), example) for mode in (False, True))
    rest = iter(eval_run)
    due = next(rest, None)
    for func, operands in train_run:
        if due is not None and due == (func, operands):
            due = next(rest, None)
        elif func._schema.name not in _NOISE or not _has_noise(operands):
            return False
    return due is None and eval_shapes == train_shapes


def _run(copy: nn.Module, example: Example) -> tuple[list[Operation], list[torch.Size]]:
    """The operations of a pass, and the shapes it returns."""
    seen = _Operations()
    with seen:
        outputs = example.run(copy)
    return seen.found, [tensor.shape for tensor in tensors_in(outputs)]


class _Operations(TorchDispatchMode):
    """Notes what runs, but for the counts of batches of batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        if func is not _COUNTING or tensors[0].is_floating_point():
            operands = [(id(t) if isinstance(t, nn.Parameter) else None, t.shape) for t in tensors]
            self.found.append((func, operands))
        return shapes.run(func, args, kwargs)


def _has_noise(operands: list[tuple[int | None, torch.Size]]) -> bool:
    """Whether one operand holds one number an example, as the noise of stochastic depth does, or is made just now."""
    if any(parameter is not None for parameter, _ in operands):
        return False
    return not operands or any(len(shape) > 1 and shape.numel() == shape[0] for _, shape in operands)
