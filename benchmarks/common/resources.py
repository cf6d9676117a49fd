"""Time and memory of this process or of a fresh one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.children import in_child


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_use(device: str) -> int:
    """Bytes, now."""
    return torch.cuda.memory_allocated() if device == "cuda" else _resident("VmRSS")


def peak(device: str) -> int:
    """Bytes, at most so far."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")


def forget_peak(device: str) -> None:
    """Let the peak begin anew."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM


def _resident(entry: str) -> int:
    """Linux; ``getrusage`` also counts the process that this one was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def child(function: Callable[[], Any], exact_memory: bool = False) -> Any:
    if exact_memory:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)  # glibc then gives all that is larger back at once
    result, error = in_child(function, 3600, fresh=True)
    os.environ.pop("MALLOC_MMAP_THRESHOLD_", None)
    if error is not None:
        raise RuntimeError(error)
    return result
