"""Latency measurements: the latency table of a network, and the latency of smaller copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from lightning_prune.budgets.spaces.latency_table import Conditions, Curve, LatencyTable
from lightning_prune.coupling.groups import Coupling
from lightning_prune.network.copies import copy_of
from lightning_prune.network.example_input import Example
from lightning_prune.network.timing import device_of, time_network, time_ratio, timed_layers
from lightning_prune.surgery.apply import apply_plan
from lightning_prune.surgery.removal import plan_removal

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # removed from every group for the table

Removed = Mapping[str, Tensor]  # group name -> bool tensor (units,), True where the unit is removed
_Made = TypeVar("_Made")


class Stopwatch:
    """Measures latency tables, and the latency of smaller copies relative to the present network.

    The speed of a machine changes after a table is measured. A copy is therefore timed alternating with the present
    network, whose latency is known, and its latency is computed from the ratio.
    """

    def __init__(self) -> None:
        self.tables: dict[Conditions, LatencyTable] = {}
        self._known: dict[Conditions, dict[str, float]] = {}  # shapes of a measured network -> milliseconds

    def add(self, conditions: Conditions, copies: Copies, removals: Iterable[Removed]) -> None:
        """Measure a table at several widths, the widest first; the first rank measures for all ranks."""
        self.tables[conditions] = from_first_rank(
            lambda: measure_table(copies.cut(removed, conditions) for removed in removals)
        )
        self._known[conditions] = {}

    def measured(self, conditions: Conditions, copies: Copies, removed: Removed) -> float:
        """Milliseconds of a pass of the network without the units in ``removed``."""
        network, inputs = copies.cut(removed, conditions)
        now, _ = copies.cut({}, conditions)
        known = self._known[conditions]
        before = known.get(_shapes(now), self.tables[conditions].ms(copies.coupling, {}))
        ms = known[_shapes(network)] = time_ratio(network, now, inputs) * before
        return ms

    def state_dict(self) -> list[dict[str, Any]]:
        """The tables and known latencies, as plain numbers."""
        return [
            {"conditions": asdict(conditions), "known": dict(self._known[conditions]), **asdict(table)}
            for conditions, table in self.tables.items()
        ]

    def load_state_dict(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Load what ``state_dict`` returned; tables that it does not contain are kept."""
        for table in state:
            conditions = Conditions(**table["conditions"])
            curves = tuple(
                Curve(**{name: tuple(values) for name, values in curve.items()}) for curve in table["curves"]
            )
            self.tables[conditions] = LatencyTable(curves, table["dense_ms"])
            self._known[conditions] = dict(table["known"])


@dataclass(frozen=True)
class Copies:
    """Creates smaller copies of a network.

    Attributes:
        model: The network; it is not changed.
        example: What its forward receives.
        coupling: Its dependency groups.
    """

    model: nn.Module
    example: Example
    coupling: Coupling

    def cut(self, removed: Removed, conditions: Conditions) -> tuple[nn.Module, Example]:
        """A copy without the units in ``removed``, and its inputs for the measurement.

        Raises:
            ValueError: If the example has no batch dimension to enlarge, or the device is not available.
        """
        inputs = (self.example.whole or self.example).repeated(conditions.batch)
        if inputs.batch != conditions.batch:
            raise ValueError(f"Latency batch={conditions.batch}: the example input has no batch dimension; use batch=1")
        device = device_of(self.model) if conditions.device is None else torch.device(conditions.device)
        network = copy_of(self.model)
        apply_plan(network, plan_removal(removed, self.coupling))
        try:
            return network.to(device).eval(), inputs.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"Latency device={conditions.device!r} cannot be used: {error}") from error


def measure_table(networks: Iterable[tuple[nn.Module, Example]]) -> LatencyTable:
    """The latency table of copies of a network at several widths, the widest first.

    Layers are timed within passes of the whole network, under realistic conditions of memory and caches.
    """
    sizes: list[dict[str, int]] = []
    times: list[tuple[float, dict[str, float]]] = []
    parts: dict[str, list[str]] = {}
    for network, inputs in networks:
        parts = parts or timed_layers(network)
        sizes.append({name: parameter.numel() for name, parameter in network.named_parameters()})
        total, by_layer = time_network(network, inputs, list(parts))
        spent = sum(by_layer.values())
        scale = min(1.0, total / spent) if spent > 0 else 1.0  # timing the layers has an overhead
        times.append((total, {layer: ms * scale for layer, ms in by_layer.items()}))

    def curve(parameters: list[str], ms: Callable[[float, dict[str, float]], float]) -> Curve:
        return Curve.through(
            parameters, [(sum(s[p] for p in parameters), ms(*t)) for s, t in zip(sizes, times, strict=True)]
        )

    curves = [curve(names, lambda _, by_layer, layer=layer: by_layer[layer]) for layer, names in parts.items()]  # type: ignore[misc]
    rest = curve(list(sizes[0]), lambda total, by_layer: max(0.0, total - sum(by_layer.values())))
    return LatencyTable((*curves, rest), sum(c.at(sizes[0]) for c in (*curves, rest)))


def from_first_rank(make: Callable[[], _Made]) -> _Made:
    """The result of ``make`` on the first rank, broadcast to all ranks; errors are raised on all ranks as well.

    If there is a process group, every rank has to take part.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return make()
    made: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            made[0] = make()
        except Exception as error:  # of any type, because the other ranks wait
            made[1] = f"{error}" if isinstance(error, ValueError) else f"latency cannot be measured: {error!r}"
    distributed.broadcast_object_list(made)
    if made[1] is not None:
        raise ValueError(made[1])
    return made[0]  # type: ignore[no-any-return]


def _shapes(network: nn.Module) -> str:
    """Identifies a network by its shapes."""
    return " ".join("x".join(map(str, parameter.shape)) for parameter in network.parameters())
