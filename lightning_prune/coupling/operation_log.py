"""The log of a forward pass that is compared with the analysis: operations, shapes, scalars and constants."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune.coupling.rules.lookup import is_cut, is_reshape, rule_of, step_of
from lightning_prune.coupling.symbols.constants import constants_of, scalar_of, setting_positions, settings_at
from lightning_prune.coupling.tracing import meta_kernels
from lightning_prune.coupling.tracing.python_calls import Literals
from lightning_prune.network.tensors import tensors_in


class OperationLog(TorchDispatchMode):
    """Dispatch mode that logs the operations of the passes inside it.

    Args:
        on_meta: Whether the network is on the meta device.

    Attributes:
        operations: The operations, see ``step_of``.
        settings: Their arguments such as paddings, see ``settings_at``.
        shapes: (whether it was cut out, shape) of the results of reshapes, slices and splits.
        scalars: The scalars that tensors are multiplied by.
        constants: Other numbers that operations compute with.
        failed_in_reshape: Whether the last operation is a reshape that raised an exception.
    """

    def __init__(self, on_meta: bool) -> None:
        super().__init__()
        self.on_meta = on_meta
        self.literals = Literals(self._record)
        self.operations: list[Any] = []
        self.settings: list[tuple[Any, ...]] = []
        self.shapes: list[tuple[bool, tuple[int, ...]]] = []
        self.scalars: list[float] = []
        self.constants: list[tuple[float, ...]] = []
        self.failed_in_reshape = False

    def __enter__(self) -> OperationLog:
        self.literals.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.literals.__exit__(*error)

    def seen(self) -> tuple[Any, ...]:
        """The operations and their settings, in the form of ``Passes.operations``."""
        return (*self.operations, tuple(self.settings))

    def _record(self, numbers: tuple[float, ...]) -> None:
        if numbers:
            self.constants.append(numbers)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reshaped, cut = is_reshape(func), is_cut(func)
        self.failed_in_reshape = reshaped
        out = meta_kernels.run(func, args, kwargs or {})
        self.failed_in_reshape = False
        step = step_of(func)
        if step is not None:
            self.operations.append(step)
        positions = setting_positions(func)
        if positions and rule_of(func) is not None:
            self.settings.append(settings_at(positions, args))
        if reshaped or cut:
            self.shapes += [(cut, tuple(tensor.shape)) for tensor in tensors_in(out)]
        scalar = scalar_of(func, args)
        if scalar is not None:
            self.scalars.append(scalar)
        else:
            self._record(constants_of(func, args, kwargs or {}, self.on_meta))
        return out
