"""Whether training has to be looked at besides eval mode: train mode, with gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.coupling.tracing import meta_kernels
from lightning_prune.coupling.tracing.python_calls import WithoutDropout
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import named_modules, tensors_in

_COUNTING = torch.ops.aten.add_.Tensor  # batch norm counts its batches in train mode
_LITERAL = torch.ops.aten.lift_fresh.default  # what it reads was made just now, by Python
_DETACH = torch.ops.aten.detach.default  # autograd keeps what operations in place return so
_MAKES_NOISE = frozenset(("aten::empty", "aten::new_empty"))
_USES_NOISE = frozenset(f"aten::{name}" for name in ("bernoulli_", "div_", "mul", "mul_"))
_NOISE = -1  # the number of a tensor that holds noise alone
_IS_GRAD_ENABLED = torch.is_grad_enabled
_HISTORY = ("requires_grad", "grad_fn", "is_leaf")  # of a tensor: they tell whether there are gradients
_NUMBER = "_lightning_prune_number"  # set on the results of operations

Operand = tuple[Any, torch.Size]  # a tensor's number and its shape


class TrainingFlagWatch:
    """Notes, as a context, whether any code but PyTorch's layers asks a module for its mode.

    These only add noise and gather statistics in train mode; so where nobody asks, the modes do not differ. Meanwhile
    ``training`` is a property of all modules.

    Attributes:
        asked: Whether somebody has.
    """

    def __init__(self) -> None:
        self.asked = False
        self._set: list[nn.Module] = []

    def __enter__(self) -> TrainingFlagWatch:
        nn.Module.training = property(self._mode, self._set_mode)  # type: ignore[assignment, method-assign]
        return self

    def __exit__(self, *error: Any) -> None:
        del nn.Module.training
        for module in self._set:
            vars(module)["training"] = int(vars(module)["training"]) == 1

    def _mode(self, module: nn.Module) -> bool:
        if not _caller().startswith("torch.nn.modules."):
            self.asked = True
        mode: Any = vars(module)["training"] if "training" in vars(module) else module.__getattr__("training")
        return int(mode) == 1

    def _set_mode(self, module: nn.Module, mode: bool) -> None:
        flag = vars(module)["training"] = _Flag(mode)
        flag.watch = self
        self._set.append(module)


class GradModeWatch:
    """Notes, as a context, whether any code but PyTorch's asks whether there are gradients.

    Meanwhile what tells is replaced: ``torch.is_grad_enabled``, and attributes of all tensors.

    Attributes:
        asked: Whether somebody has.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> GradModeWatch:
        torch.is_grad_enabled = self._enabled
        for name in _HISTORY:
            setattr(Tensor, name, self._history(getattr(torch._C.TensorBase, name)))
        return self

    def __exit__(self, *error: Any) -> None:
        torch.is_grad_enabled = _IS_GRAD_ENABLED
        for name in _HISTORY:
            delattr(Tensor, name)

    def _enabled(self) -> bool:
        self.asked = self.asked or not _caller().startswith("torch.")
        return _IS_GRAD_ENABLED()

    def _history(self, own: Any) -> property:
        def read(tensor: Tensor) -> Any:
            self.asked = self.asked or not _caller().startswith("torch.")
            return own.__get__(tensor)

        return property(read, own.__set__)


class _Flag(int):
    """The mode of a module, for code that reads it from the module's ``__dict__``."""

    watch: TrainingFlagWatch

    def __bool__(self) -> bool:
        self.watch.asked = True
        return int(self) == 1

    def __reduce__(self) -> tuple[Any, ...]:
        return bool, (int(self),)


def _caller() -> str:
    """The Python module of the code that called the function which asks this."""
    return str(sys._getframe(2).f_globals.get("__name__", ""))


def overrides_mode_switch(model: nn.Module) -> bool:
    """Whether a module does more than to note its mode when that changes."""
    classes = {type(module) for _, module in named_modules(model)}
    return any(cls.train is not nn.Module.train or cls.eval is not nn.Module.eval for cls in classes)


def run_as_training(run: Callable[[], Any]) -> tuple[Any, bool]:
    """What ``run`` returns, with gradients if its code asks for them, and whether it does."""
    with GradModeWatch() as grads:
        found = run()
    if not grads.asked:
        return found, False
    with torch.enable_grad():
        return run(), True


def compare_modes(copy: nn.Module, example: Example, restore: Callable[[], None]) -> tuple[bool, bool]:
    """Whether training runs what eval mode runs, but for dropout and what multiplies by noise; and with gradients.

    Args:
        copy: The network.
        example: What its forward receives.
        restore: Puts the network's buffers back in their places.
    """

    def run() -> _Operations:
        seen = _Operations()
        with WithoutDropout(), seen:
            outputs = example.run(copy)
        seen.outputs = [seen.operand(tensor) for tensor in tensors_in(outputs)]
        restore()
        return seen

    copy.train()  # first, for it may fail at once
    train, grads = run_as_training(run)
    copy.eval()
    return train.same_but_for_noise(run()), grads


@dataclass(frozen=True)
class _Operation:
    func: Any
    operands: list[Operand]
    integers: list[int]
    results: list[int]


class _Operations(TorchDispatchMode):
    """Notes what runs on which tensors, but for the counts of batches of batch norm.

    The results of operations are numbered; what is none, such as a parameter, has its ``id`` for a number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[_Operation] = []
        self.outputs: list[Operand] = []
        self._pass = object()
        self._outside: dict[int, Tensor] = {}  # kept, so that nothing else gets their ids
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        operands = [(None, tensor.shape) if func is _LITERAL else self.operand(tensor) for tensor in tensors]
        out = meta_kernels.run(func, args, kwargs)
        if func is _DETACH:
            out.__dict__[_NUMBER] = self._pass, operands[0][0]
        elif func is not _COUNTING or tensors[0].is_floating_point():
            results = [self._numbered(tensor) for tensor in tensors_in(out)]
            self.found.append(_Operation(func, operands, list(_integers(args)), results))
        return out

    def operand(self, tensor: Tensor) -> Operand:
        """What is noted about a tensor that is read."""
        made, number = tensor.__dict__.get(_NUMBER, (None, 0))
        if made is not self._pass:
            number = id(tensor)
            self._outside[number] = tensor
        return number, tensor.shape

    def _numbered(self, tensor: Tensor) -> int:
        self._count += 1
        tensor.__dict__[_NUMBER] = self._pass, self._count
        return self._count

    def same_but_for_noise(self, evaluated: _Operations) -> bool:
        """Whether this pass in train mode does what another did in eval mode."""
        same: dict[Any, Any] = {}  # number in train mode -> in eval mode

        def known(operands: list[Operand]) -> list[Operand]:
            return [(same.get(number, number), shape) for number, shape in operands]

        rest = iter(evaluated.found)
        due = next(rest, None)
        for operation in self.found:
            func, operands = operation.func, known(operation.operands)
            if due is not None and (func, operands, operation.integers) == (due.func, due.operands, due.integers):
                same.update(zip(operation.results, due.results, strict=True))
                due = next(rest, None)
            elif func._schema.name in _MAKES_NOISE:
                same.update(dict.fromkeys(operation.results, _NOISE))
            elif func._schema.name in _USES_NOISE and any(map(_is_noise, operands)):
                kept = next((number for number, _ in operands if number != _NOISE), _NOISE)
                same.update(dict.fromkeys(operation.results, kept))
            else:
                return False
        return due is None and known(self.outputs) == evaluated.outputs


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield int(value)


def _is_noise(operand: Operand) -> bool:
    """Whether it holds one number an example, as the noise of stochastic depth does."""
    number, shape = operand
    return number == _NOISE and len(shape) > 1 and shape.numel() == shape[0]
