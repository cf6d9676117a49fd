"""Whether train mode has to be looked at besides eval mode."""

from __future__ import annotations

import sys
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
_COUNTING = torch.ops.aten.add_.Tensor  # batch norm counts its batches in train mode
_NOISE = frozenset(f"aten::{name}" for name in ("empty", "new_empty", "bernoulli_", "div_", "mul", "mul_"))


class ModeWatch:
    """Notes, as a context, whether any code but PyTorch's layers asks a module for its mode.

    These only add noise and gather statistics in train mode; so where nobody asks, the modes do not differ. Meanwhile
    ``training`` is a property of all modules.

    Attributes:
        asked: Whether somebody has.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> ModeWatch:
        nn.Module.training = property(self._mode, _set_mode)  # type: ignore[assignment, method-assign]
        return self

    def __exit__(self, *error: Any) -> None:
        del nn.Module.training

    def _mode(self, module: nn.Module) -> bool:
        if not sys._getframe(1).f_globals.get("__name__", "").startswith("torch.nn.modules."):
            self.asked = True
        return bool(vars(module)["training"] if "training" in vars(module) else module.__getattr__("training"))


def _set_mode(module: nn.Module, mode: bool) -> None:
    vars(module)["training"] = mode


def switches(model: nn.Module) -> bool:
    """Whether a module does more than to note its mode when that changes."""
    classes = {type(module) for _, module in named_modules(model)}
    return any(cls.train is not nn.Module.train or cls.eval is not nn.Module.eval for cls in classes)


def same_but_for_noise(copy: nn.Module, example: Example) -> bool:
    """Whether train mode runs what eval mode runs, but for dropout and what multiplies by noise."""
    with WithoutDropout():
        train_run, train_shapes = _run(copy.train(), example)  # first, for it may fail at once
        eval_run, eval_shapes = _run(copy.eval(), example)
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
