"""Forward passes without the compiler: compiled code runs eagerly, and ``torch._dynamo`` is not imported needlessly."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

_DYNAMO = "torch._dynamo"
_CACHED = "__dynamo_disable"  # attribute of a function: what torch._dynamo.disable returned for it


@contextmanager
def running_eagerly() -> Iterator[None]:
    """Context in which compiled functions and modules run uncompiled.

    ``torch.compile`` imports ``torch._dynamo``, so until then nothing is compiled. But PyTorch's meta kernels and
    dispatch modes import it as well, only to disable it for themselves, which takes seconds in the first pass of a
    process. A placeholder spares them that.
    """
    loaded = sys.modules.get(_DYNAMO)
    if isinstance(loaded, _Placeholder):
        yield
    elif loaded is not None:
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        with ExitStack() as stack:
            placeholder = _Placeholder(stack)
            stack.callback(placeholder.remove)
            yield


class _Placeholder(ModuleType):
    """Stands for ``torch._dynamo`` until any other attribute than ``disable`` is read, which imports the module."""

    def __init__(self, stack: ExitStack) -> None:
        super().__init__(_DYNAMO)
        self._stack = stack
        self._functions: list[Callable[..., Any]] = []
        sys.modules[_DYNAMO] = self

    def disable(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        self._functions.append(function)
        return function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # inspect asks all modules for their files
            raise AttributeError(f"module {_DYNAMO!r} has no attribute {name!r}")
        if self.remove():
            import_module(_DYNAMO)
            self._stack.enter_context(torch.compiler.set_stance("force_eager"))  # for the rest of the context
        return getattr(import_module(_DYNAMO), name)

    def remove(self) -> bool:
        """Undo everything; whether there was anything to undo."""
        for function in self._functions:
            if hasattr(function, _CACHED):
                delattr(function, _CACHED)
        self._functions.clear()
        if vars(torch).get("_dynamo") is self:
            del torch._dynamo
        if sys.modules.get(_DYNAMO) is not self:
            return False
        del sys.modules[_DYNAMO]
        return True
