"""Latency of a whole network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_prune.network.argument_checks import check_integer
from lightning_prune.network.example_input import Example
from lightning_prune.network.module_modes import eval_mode
from lightning_prune.network.timing import Clock, device_of


@dataclass(frozen=True)
class Timing:
    """The latency of a forward pass.

    Attributes:
        median_ms: The median, in milliseconds.
        p99_ms: The 99th percentile, in milliseconds.
    """

    median_ms: float
    p99_ms: float


def latency(module: nn.Module, example_inputs: Any, repeats: int = 100, warmup: int = 10) -> Timing:
    """Measure the latency of forward passes in eval mode and inference mode, with the current number of threads.

    Args:
        module: The network; its mode is restored afterwards.
        example_inputs: The arguments of its forward pass, with the batch to measure, which are moved to the device of
            the module: a tuple holds positional arguments, a dict keyword arguments, anything else is the one argument.
        repeats: Number of timed passes, at least 1.
        warmup: Number of passes before them, at least 0.

    Raises:
        ValueError: If ``repeats`` or ``warmup`` is too small.

    Example:
        >>> timing = latency(nn.Linear(8, 8), torch.zeros(4, 8), repeats=20)
        >>> 0 < timing.median_ms <= timing.p99_ms
        True
    """
    check_integer("latency", "repeats", repeats, minimum=1)
    check_integer("latency", "warmup", warmup, minimum=0)
    keyword = example_inputs if isinstance(example_inputs, dict) else {}
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    clock = Clock(device_of(module))
    example = Example(() if isinstance(example_inputs, dict) else args, keyword, 1).to(clock.device)
    with eval_mode(module), torch.inference_mode():
        passes = [clock.pass_ms(lambda: example.run(module)) for _ in range(warmup + repeats)][warmup:]
    return Timing(statistics.median(passes), float(np.percentile(passes, 99)))


def compare_latency(
    models: dict[str, nn.Module], example: Example, repeats: int = 30, warmup: int = 5
) -> dict[str, float]:
    """Measure the median latency of several networks, whose passes alternate so that all run under the same load.

    Args:
        models: Networks by name, on the device of ``example``; measured in eval mode, which is undone afterwards.
        example: The arguments of their forward pass.
        repeats: Number of timed passes of each network, at least 1.
        warmup: Number of passes before them.

    Returns:
        Name -> median seconds of a forward pass.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(eval_mode(model))
        stack.enter_context(torch.inference_mode())
        for turn in range(warmup + repeats):
            for name, model in models.items():
                elapsed = _timed(lambda model=model: example.run(model))  # type: ignore[misc]
                if turn >= warmup:
                    seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _timed(call: Callable[[], Any]) -> float:
    _synchronize()
    start = time.perf_counter()
    call()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
