"""Run a function in a child process with a time limit, one at a time."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable
from typing import Any


def in_child(function: Callable[[], Any], limit_s: float, fresh: bool = False) -> tuple[Any, str | None]:
    """The result and None, or None and why there is none: an exception, the time limit, or the signal that ended it.

    Args:
        function: What to call.
        limit_s: Seconds until the child is killed.
        fresh: Start a new interpreter, with a heap of its own; else the child is a fork, for which imports and a
            network that is already built come for nothing.
    """
    context: Any = multiprocessing.get_context("spawn" if fresh else "fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_call, args=(function, theirs))
    child.start()
    theirs.close()
    deadline = time.monotonic() + limit_s
    result, error = None, None
    try:
        if ours.poll(max(deadline - time.monotonic(), 0)):
            result, error = ours.recv()
        else:
            error = f"no end within {limit_s:g} s"
    except EOFError:
        child.join()
        error = f"the process died with exit code {child.exitcode}"
    finally:
        if child.is_alive():
            child.join(0.5)
        if child.is_alive():
            child.kill()
        child.join()
        ours.close()
    return result, error


def _call(function: Callable[[], Any], pipe: Any) -> None:
    try:
        answer = (function(), None)
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        message = (str(error).splitlines() or [""])[0][:200]
        place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        answer = (None, f"{type(error).__name__}: {message} ({place})")
    pipe.send(answer)
    pipe.close()
