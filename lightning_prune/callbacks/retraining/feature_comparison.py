"""Comparison of the outputs of a student and a teacher, for distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.callbacks.trainer.lightning_packages import MisconfigurationException
from lightning_prune.distilling import DistillationLoss


class Comparison:
    """Hooks on student and teacher that compare their outputs during one training batch.

    When the student is called, the teacher is called with the same arguments. A hook on the gradient of each compared
    output of the student adds the gradient of the distillation loss.

    Args:
        student: Network that is trained.
        teacher: Network that provides the targets.
        losses: Distillation losses, each on a module that exists in both networks.
        scale: Factor by which the loss of the task is multiplied before the backward pass.

    Attributes:
        values: Weighted losses so far.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, losses: Sequence[DistillationLoss], scale: float
    ) -> None:
        self.values: list[Tensor] = []
        self._losses, self._scale = losses, scale
        self._targets: dict[str, Tensor] = {}
        self._used: set[str] = set()
        self._handles: list[Any] = [student.register_forward_pre_hook(_CallTeacher(teacher), with_kwargs=True)]
        for name in dict.fromkeys(loss.module for loss in losses):
            self._handles.append(teacher.get_submodule(name).register_forward_hook(_RecordOutput(self, name)))
            self._handles.append(student.get_submodule(name).register_forward_hook(_AddGradient(self, name)))

    @property
    def unused(self) -> str | None:
        """First compared module that the student has not called; None if all were called."""
        return next((loss.module for loss in self._losses if loss.module not in self._used), None)

    def record(self, name: str, output: Any) -> None:
        """Record an output of the teacher."""
        if isinstance(output, Tensor):
            self._targets[name] = output

    def add(self, name: str, output: Any) -> None:
        """Add the gradients of the losses to the gradient of the student's output."""
        if not isinstance(output, Tensor) or not output.requires_grad or output.dim() < 2 or name not in self._targets:
            return
        self._used.add(name)
        target, own = self._targets.pop(name), [loss for loss in self._losses if loss.module == name]
        try:
            results = [loss.gradient(output, target) for loss in own]
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self.values += [value for value, _ in results]
        share = min(loss.share for loss in own)
        gradient = torch.stack([gradient for _, gradient in results]).sum(0) * self._scale
        output.register_hook(lambda task: share * task + gradient.to(task.dtype))

    def release(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


class _CallTeacher:
    """Forward pre-hook of the student that calls the teacher. Copies of hooks, in copies of a network, do nothing."""

    def __init__(self, teacher: nn.Module | None) -> None:
        self.teacher = teacher

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self.teacher is not None and torch.is_grad_enabled() and not _is_training_step(module):
            with torch.no_grad():
                self.teacher(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _CallTeacher:
        return _CallTeacher(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _CallTeacher, (None,)


class _RecordOutput:
    def __init__(self, comparison: Comparison | None, name: str) -> None:
        self.comparison, self.name = comparison, name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.comparison is not None:
            self.comparison.record(self.name, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> _RecordOutput:
        return _RecordOutput(None, self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _RecordOutput, (None, self.name)


class _AddGradient(_RecordOutput):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.comparison is not None and torch.is_grad_enabled():
            self.comparison.add(self.name, output)


def _is_training_step(module: nn.Module) -> bool:
    """Whether this call of a LightningModule runs its ``training_step``, which DDP calls through ``forward``."""
    return "forward" in vars(module) and not hasattr(module.forward, "__self__")
