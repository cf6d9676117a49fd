"""A clock that only layers move, each by as much as its cost says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from torch import nn

from lightning_prune.network import timing

Cost = Callable[[nn.Module], float]  # milliseconds for one example


def by_weights(layer: nn.Module) -> float:
    """A microsecond for each weight."""
    return layer.weight.numel() / 1000


def by_inputs(layer: nn.Module) -> float:
    """Mostly by the square of the inputs: a table that goes by numbers of weights is wrong about it."""
    return (layer.weight.shape[1] ** 2 + 10 * layer.weight.shape[0]) / 2000


def total(network: nn.Module, cost: Cost = by_weights) -> float:
    """Milliseconds of a pass with one example."""
    return sum(cost(layer) for layer in network.modules() if isinstance(layer, (nn.Linear, nn.Conv2d)))


class FakeTime:
    def __init__(self, cost: Cost) -> None:
        self.now, self.slowness, self.cost = 0.0, 1.0, cost

    def hook(self, layer: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            self.now += self.slowness * self.cost(layer) * len(inputs[0]) / 1000


@contextmanager
def fake_time(monkeypatch: pytest.MonkeyPatch, cost: Cost = by_weights) -> Iterator[FakeTime]:
    fake = FakeTime(cost)
    monkeypatch.setattr(timing.Clock, "mark", lambda self: fake.now)
    monkeypatch.setattr(timing, "_MOST", timing._FEWEST)
    handle = nn.modules.module.register_module_forward_hook(fake.hook)
    try:
        yield fake
    finally:
        handle.remove()
