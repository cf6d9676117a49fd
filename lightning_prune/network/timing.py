"""Times the forward passes of a network, and each of its layers in them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import ceil, floor
from typing import Any, TypeVar

import torch
from torch import nn

from lightning_prune.network.eager import running_eagerly
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import named_tensors

_WARMUP = 3
_FEWEST, _MOST = 5, 200  # timed passes of one network
_SECONDS = 1.0  # duration of the measurement of one network, after its fewest passes
_MAX_SECONDS = 5.0  # the same on a busy machine, where the standard error of the median is above 1 %
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

_One = TypeVar("_One")
_Other = TypeVar("_Other")


class Clock:
    """Measures the time between two points in the work of a device; uses events on CUDA and synchronizes elsewhere.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """A mark of the current point in the work of the device."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            return event
        self._synchronize()
        return time.perf_counter()

    def ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two marks."""
        if self.device.type == "cuda":
            end.synchronize()
            return float(start.elapsed_time(end))
        return 1000 * float(end - start)

    def pass_ms(self, call: Callable[[], Any]) -> float:
        """Milliseconds that ``call`` takes on the device after all earlier work is finished."""
        self._synchronize()
        start = self.mark()
        call()
        return self.ms(start, self.mark())

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()


def time_network(network: nn.Module, inputs: Example, layers: Iterable[str]) -> tuple[float, dict[str, float]]:
    """Median milliseconds of a forward pass, and of each of ``layers`` from its start to the start of the next."""
    clock, names = Clock(device_of(network)), list(layers)
    turns = _in_turns(
        clock,
        lambda: clock.pass_ms(lambda: inputs.run(network)),
        lambda: _by_layer(network, inputs, clock, names),
    )
    return (
        statistics.median(total for total, _ in turns),
        {layer: statistics.median(by_layer[layer] for _, by_layer in turns) for layer in names},
    )


def time_ratio(network: nn.Module, reference: nn.Module, inputs: Example) -> float:
    """Ratio of the latency of ``network`` to that of ``reference``: the median over alternating passes."""
    clock = Clock(device_of(network))
    turns = _in_turns(
        clock,
        lambda: clock.pass_ms(lambda: inputs.run(network)),
        lambda: clock.pass_ms(lambda: inputs.run(reference)),
        lambda turns: median_error([ms / reference_ms for ms, reference_ms in turns]) < 0.01,
    )
    return statistics.median(ms / reference_ms for ms, reference_ms in turns)


def median_error(values: Sequence[float]) -> float:
    """Relative standard error of the median, for any distribution.

    The rank of the true median among n values is binomial: n / 2 with a standard deviation of sqrt(n) / 2.

    Example:
        >>> round(median_error([1.0, 1.0, 1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 9.0]), 4)  # 1.0 and 1.3 around 1.1
        0.1364
    """
    ranked, half = sorted(values), len(values) ** 0.5 / 2
    middle = (len(values) - 1) / 2
    return (ranked[ceil(middle + half)] - ranked[floor(middle - half)]) / 2 / statistics.median(values)


def _in_turns(
    clock: Clock,
    first: Callable[[], _One],
    second: Callable[[], _Other],
    settled: Callable[[list[tuple[_One, _Other]]], bool] = lambda _: True,
) -> list[tuple[_One, _Other]]:
    """Results of two alternating measurements after a warm-up, until they are ``settled`` or a limit is reached."""
    forked = torch.random.fork_rng([clock.device] if clock.device.type == "cuda" else [])
    with torch.inference_mode(), forked, running_eagerly():
        for _ in range(_WARMUP):
            first(), second()
        started = time.perf_counter()
        turns: list[tuple[_One, _Other]] = []
        while len(turns) < _MOST:
            turns.append((first(), second()))
            spent = time.perf_counter() - started
            if len(turns) >= _FEWEST and spent >= _SECONDS and (spent >= _MAX_SECONDS or settled(turns)):
                break
    return turns


def _by_layer(network: nn.Module, inputs: Example, clock: Clock, layers: Iterable[str]) -> dict[str, float]:
    """Milliseconds from the start of each layer to the start of the next, summed over all calls of one pass."""
    started: list[tuple[str, Any]] = []
    spent = dict.fromkeys(layers, 0.0)
    hooks = [
        network.get_submodule(layer).register_forward_pre_hook(
            lambda *_, layer=layer: started.append((layer, clock.mark()))  # type: ignore[misc]
        )
        for layer in spent
    ]
    clock.pass_ms(lambda: inputs.run(network))
    started.append(("", clock.mark()))
    for hook in hooks:
        hook.remove()
    for (layer, start), (_, end) in pairwise(started):
        spent[layer] += clock.ms(start, end)
    return spent


def timed_layers(network: nn.Module) -> dict[str, list[str]]:
    """The layers to time: outermost modules that compute with parameters of their own.

    A layer of PyTorch is one entry. Other modules are searched for layers, unless no submodule has parameters.

    Returns:
        Module name -> names of its parameters.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found: dict[str, list[str]] = {}

    def search(module: nn.Module, path: str) -> None:
        own = {names[id(parameter)] for parameter in module.parameters()}
        children = {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}
        layer = type(module).__module__.startswith("torch.nn.") and not isinstance(module, _CONTAINERS)
        if own and (layer or not children):
            found[path] = sorted(own)
            return
        for name, child in children.items():
            search(child, f"{path}.{name}" if path else name)

    search(network, "")
    return found


def device_of(module: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU where there is none."""
    return next((tensor.device for _, tensor in named_tensors(module)), torch.device("cpu"))
