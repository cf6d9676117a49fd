"""Outputs of a student's modules, compared with those of a teacher while the student trains on one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.callbacks.trainer.lightning_packages import MisconfigurationException
from lightning_prune.distilling import DistillationLoss


class Comparison:
    """Hooks on both networks, from one batch's beginning to its end.

    Where the student is called, the teacher is called with the same arguments. A hook on the gradient of each compared
    output of the student adds that of the loss.

    Args:
        student: The network that trains.
        teacher: The network that it learns from.
        losses: What is compared, by names of modules that lie in both.
        scale: What the task's loss is multiplied by before it goes backward.

    Attributes:
        values: Weighted losses so far.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, losses: Sequence[DistillationLoss], scale: float
    ) -> None:
        self.values: list[Tensor] = []
        self._losses, self._scale = losses, scale
        self._taught: dict[str, Tensor] = {}
        self._used: set[str] = set()
        self._handles: list[Any] = [student.register_forward_pre_hook(_Asking(teacher), with_kwargs=True)]
        for name in dict.fromkeys(loss.module for loss in losses):
            self._handles.append(teacher.get_submodule(name).register_forward_hook(_Noting(self, name)))
            self._handles.append(student.get_submodule(name).register_forward_hook(_Adding(self, name)))

    @property
    def unused(self) -> str | None:
        """The first module that the student has not called."""
        return next((loss.module for loss in self._losses if loss.module not in self._used), None)

    def note(self, name: str, output: Any) -> None:
        """What the teacher says."""
        if isinstance(output, Tensor):
            self._taught[name] = output

    def add(self, name: str, output: Any) -> None:
        """Let the gradient of the student's output become that of the task and of the losses."""
        if not isinstance(output, Tensor) or not output.requires_grad or output.dim() < 2 or name not in self._taught:
            return
        self._used.add(name)
        taught, own = self._taught.pop(name), [loss for loss in self._losses if loss.module == name]
        try:
            found = [loss.gradient(output, taught) for loss in own]
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self.values += [value for value, _ in found]
        share = min(loss.share for loss in own)
        gradient = torch.stack([gradient for _, gradient in found]).sum(0) * self._scale
        output.register_hook(lambda task: share * task + gradient.to(task.dtype))

    def release(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


class _Asking:
    """A hook before the student's module; copies of the network get one that does nothing, as with the others here."""

    def __init__(self, teacher: nn.Module | None) -> None:
        self.teacher = teacher

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self.teacher is not None and torch.is_grad_enabled() and not _stands_in(module):
            with torch.no_grad():
                self.teacher(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Asking:
        return _Asking(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Asking, (None,)


class _Noting:
    def __init__(self, comparison: Comparison | None, name: str) -> None:
        self.comparison, self.name = comparison, name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.comparison is not None:
            self.comparison.note(self.name, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Noting:
        return _Noting(None, self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Noting, (None, self.name)


class _Adding(_Noting):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.comparison is not None and torch.is_grad_enabled():
            self.comparison.add(self.name, output)


def _stands_in(module: nn.Module) -> bool:
    """Whether this call of a LightningModule is one of its ``training_step``, which DDP makes by way of ``forward``."""
    return "forward" in vars(module) and not hasattr(module.forward, "__self__")
