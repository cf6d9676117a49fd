"""Whether a network must be traced in train mode as well as in eval mode."""

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

_BATCH_COUNT = torch.ops.aten.add_.Tensor  # batch norm counts its batches in train mode
_LITERAL = torch.ops.aten.lift_fresh.default  # its operand was just created by Python
_DETACH = torch.ops.aten.detach.default  # autograd keeps the results of in-place operations in this way
_CREATES_NOISE = frozenset(("aten::empty", "aten::new_empty"))
_USES_NOISE = frozenset(f"aten::{name}" for name in ("bernoulli_", "div_", "mul", "mul_"))
_NOISE = -1  # the number of a tensor that holds only noise
_IS_GRAD_ENABLED = torch.is_grad_enabled
_GRAD_ATTRIBUTES = ("requires_grad", "grad_fn", "is_leaf")  # of a tensor: they reveal whether gradients are enabled
_NUMBER = "_lightning_prune_number"  # set on the results of operations

Operand = tuple[Any, torch.Size]  # a tensor's number and its shape


class TrainingFlagWatch:
    """Context that records whether any code outside PyTorch's layers reads ``training`` of a module.

    PyTorch's layers only add noise and gather statistics in train mode. If no other code reads ``training``, the two
    modes run the same operations otherwise. Inside the context ``training`` is a property of all modules.

    Attributes:
        was_read: Whether it was read.
    """

    def __init__(self) -> None:
        self.was_read = False
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
            self.was_read = True
        mode: Any = vars(module)["training"] if "training" in vars(module) else module.__getattr__("training")
        return int(mode) == 1

    def _set_mode(self, module: nn.Module, mode: bool) -> None:
        flag = vars(module)["training"] = _Flag(mode)
        flag.watch = self
        self._set.append(module)


class GradModeWatch:
    """Context that records whether any code outside PyTorch reads whether gradients are enabled.

    Inside the context ``torch.is_grad_enabled`` and the attributes of tensors that reveal it are replaced.

    Attributes:
        was_read: Whether it was read.
    """

    def __init__(self) -> None:
        self.was_read = False

    def __enter__(self) -> GradModeWatch:
        torch.is_grad_enabled = self._enabled
        for name in _GRAD_ATTRIBUTES:
            setattr(Tensor, name, self._grad_attribute(getattr(torch._C.TensorBase, name)))
        return self

    def __exit__(self, *error: Any) -> None:
        torch.is_grad_enabled = _IS_GRAD_ENABLED
        for name in _GRAD_ATTRIBUTES:
            delattr(Tensor, name)

    def _enabled(self) -> bool:
        self.was_read = self.was_read or not _caller().startswith("torch.")
        return _IS_GRAD_ENABLED()

    def _grad_attribute(self, own: Any) -> property:
        def read(tensor: Tensor) -> Any:
            self.was_read = self.was_read or not _caller().startswith("torch.")
            return own.__get__(tensor)

        return property(read, own.__set__)


class _Flag(int):
    """The mode of a module, for code that reads it from the module's ``__dict__``."""

    watch: TrainingFlagWatch

    def __bool__(self) -> bool:
        self.watch.was_read = True
        return int(self) == 1

    def __reduce__(self) -> tuple[Any, ...]:
        return bool, (int(self),)


def _caller() -> str:
    """The name of the Python module that called the caller of this function."""
    return str(sys._getframe(2).f_globals.get("__name__", ""))


def overrides_mode_switch(model: nn.Module) -> bool:
    """Whether a module overrides ``train`` or ``eval``, so that a change of mode may do more than set ``training``."""
    classes = {type(module) for _, module in named_modules(model)}
    return any(cls.train is not nn.Module.train or cls.eval is not nn.Module.eval for cls in classes)


def run_as_training(run: Callable[[], Any]) -> tuple[Any, bool]:
    """Call ``run``, with gradients enabled if its code reads whether they are.

    Returns:
        The result of ``run``, and whether gradients were enabled.
    """
    with GradModeWatch() as grads:
        found = run()
    if not grads.was_read:
        return found, False
    with torch.enable_grad():
        return run(), True


def compare_modes(copy: nn.Module, example: Example, restore: Callable[[], None]) -> tuple[bool, bool]:
    """Compare the operations of train mode and eval mode, without dropout and multiplications by noise.

    Args:
        copy: The network.
        example: The arguments of its forward pass.
        restore: Restores the network's buffers.

    Returns:
        Whether both modes run the same operations, and whether train mode ran with gradients enabled.
    """

    def run() -> _Operations:
        log = _Operations()
        with WithoutDropout(), log:
            outputs = example.run(copy)
        log.outputs = [log.operand(tensor) for tensor in tensors_in(outputs)]
        restore()
        return log

    copy.train()  # train mode first, because it may fail immediately
    train, grads = run_as_training(run)
    copy.eval()
    return train.equals_except_noise(run()), grads


@dataclass(frozen=True)
class _Operation:
    func: Any
    operands: list[Operand]
    integers: list[int]
    results: list[int]


class _Operations(TorchDispatchMode):
    """Dispatch mode that records the operations and their operands, except the batch counts of batch norm.

    The results of operations are numbered. Other tensors, such as parameters, have their ``id`` as number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[_Operation] = []
        self.outputs: list[Operand] = []
        self._pass = object()
        self._outside: dict[int, Tensor] = {}  # kept alive, so that no other object gets their ids
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        operands = [(None, tensor.shape) if func is _LITERAL else self.operand(tensor) for tensor in tensors]
        out = meta_kernels.run(func, args, kwargs)
        if func is _DETACH:
            out.__dict__[_NUMBER] = self._pass, operands[0][0]
        elif func is not _BATCH_COUNT or tensors[0].is_floating_point():
            results = [self._numbered(tensor) for tensor in tensors_in(out)]
            self.found.append(_Operation(func, operands, list(_integers(args)), results))
        return out

    def operand(self, tensor: Tensor) -> Operand:
        """The number and shape of a tensor that an operation reads."""
        traced_pass, number = tensor.__dict__.get(_NUMBER, (None, 0))
        if traced_pass is not self._pass:
            number = id(tensor)
            self._outside[number] = tensor
        return number, tensor.shape

    def _numbered(self, tensor: Tensor) -> int:
        self._count += 1
        tensor.__dict__[_NUMBER] = self._pass, self._count
        return self._count

    def equals_except_noise(self, evaluated: _Operations) -> bool:
        """Whether this pass in train mode runs the operations of the pass ``evaluated`` in eval mode."""
        same: dict[Any, Any] = {}  # number in train mode -> in eval mode

        def known(operands: list[Operand]) -> list[Operand]:
            return [(same.get(number, number), shape) for number, shape in operands]

        remaining = iter(evaluated.found)
        expected = next(remaining, None)
        for operation in self.found:
            func, operands = operation.func, known(operation.operands)
            if expected is not None and (func, operands, operation.integers) == (
                expected.func,
                expected.operands,
                expected.integers,
            ):
                same.update(zip(operation.results, expected.results, strict=True))
                expected = next(remaining, None)
            elif func._schema.name in _CREATES_NOISE:
                same.update(dict.fromkeys(operation.results, _NOISE))
            elif func._schema.name in _USES_NOISE and any(map(_is_noise, operands)):
                kept = next((number for number, _ in operands if number != _NOISE), _NOISE)
                same.update(dict.fromkeys(operation.results, kept))
            else:
                return False
        return expected is None and known(self.outputs) == evaluated.outputs


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield int(value)


def _is_noise(operand: Operand) -> bool:
    """Whether it is noise with one number for each example, as in stochastic depth."""
    number, shape = operand
    return number == _NOISE and len(shape) > 1 and shape.numel() == shape[0]
