"""What a network costs: parameters, multiply-accumulates, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune.network.argument_checks import check_integer
from lightning_prune.network.example_input import Example, run_on_copy
from lightning_prune.network.sharded import full_tensor
from lightning_prune.network.timing import Clock, device_of


@dataclass(frozen=True)
class Size:
    """What a network costs.

    Attributes:
        params: Number of parameters.
        nonzero: Number of parameters that are not exactly zero.
        macs: Multiply-accumulates of one example's forward pass in eval mode; None without an example input.
    """

    params: int
    nonzero: int
    macs: int | None


def measure(model: nn.Module, example: Example | None) -> Size:
    """Count parameters and multiply-accumulates.

    MACs are those of convolutions and matrix products (attention included), as PyTorch's ``FlopCounterMode`` sees
    them with the fused attention path off; elementwise work is not counted.

    Example:
        >>> size = measure(nn.Linear(10, 3), Example.of(torch.zeros(1, 10)))
        >>> size.params, size.macs
        (33, 30)
    """
    return Size(
        params=sum(p.numel() for p in model.parameters()),
        nonzero=sum(int(torch.count_nonzero(full_tensor(p.detach()))) for p in model.parameters()),
        macs=None if example is None else count_macs(model, example),
    )


def count_macs(model: nn.Module, example: Example) -> int:
    """Multiply-accumulates of one example's forward pass in eval mode."""

    def count(copy: nn.Module, inputs: Example) -> int:
        counter = FlopCounterMode(display=False)
        with counter:
            inputs.run(copy.eval())
        return round(counter.get_total_flops() / 2 / inputs.batch)

    macs: int = run_on_copy(model, example, count)
    return macs


@dataclass(frozen=True)
class Timing:
    """How long a forward pass takes.

    Attributes:
        median_ms: The median, in milliseconds.
        p99_ms: The 99th percentile, in milliseconds: one pass of a hundred takes longer.
    """

    median_ms: float
    p99_ms: float


def latency(module: nn.Module, example_inputs: Any, repeats: int = 100, warmup: int = 10) -> Timing:
    """Time forward passes in eval mode and inference mode; modes are restored, threads are left as they are.

    Args:
        module: The network.
        example_inputs: What its forward receives, the whole batch, moved to the device of the module: a tuple is
            positional, a dict is keyword, anything else is the one argument.
        repeats: Timed passes, at least 1.
        warmup: Passes before them.

    Raises:
        ValueError: If there are no passes to time.

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


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every part has its own mode again."""
    modes = [(below, below.training) for below in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for below, training in modes:
            below.training = training


def compare_latency(
    models: dict[str, nn.Module], example: Example, repeats: int = 30, warmup: int = 5
) -> dict[str, float]:
    """Median seconds of a forward pass for each of ``models``, measured in turns so that all see the same machine.

    Args:
        models: Networks by name, on the device of ``example``; measured in eval mode, their mode is restored.
        example: What their forward receives.
        repeats: Timed passes of each network, at least 1.
        warmup: Passes before them.
    """
    modes = {name: [(m, m.training) for m in model.modules()] for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    try:
        with torch.inference_mode():
            for turn in range(warmup + repeats):
                for name, model in models.items():
                    model.eval()
                    elapsed = _timed(lambda model=model: example.run(model))  # type: ignore[misc]
                    if turn >= warmup:
                        seconds[name].append(elapsed)
    finally:
        for modules in modes.values():
            for module, training in modules:
                module.training = training
    return {name: statistics.median(values) for name, values in seconds.items()}


def _timed(call: Callable[[], Any]) -> float:
    _synchronise()
    start = time.perf_counter()
    call()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def nonzero_in(tensors: Iterable[Tensor]) -> int:
    """How many entries of ``tensors`` are not zero."""
    return sum(int(torch.count_nonzero(tensor)) for tensor in tensors)
