"""Latency table: the latency of each layer as a function of its number of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from lightning_prune.coupling.groups import Coupling


@dataclass(frozen=True)
class Conditions:
    """Conditions under which latency is measured.

    Attributes:
        batch: Number of examples in a pass.
        device: The device; None for the device of the network.
    """

    batch: int = 1
    device: str | None = None


@dataclass(frozen=True)
class Curve:
    """Latency of a part of the network as a non-decreasing function of its number of parameters.

    Attributes:
        parameters: Names of the parameters of this part.
        sizes: Numbers of parameters, ascending.
        ms: Milliseconds at each, ascending.
    """

    parameters: tuple[str, ...]
    sizes: tuple[float, ...]
    ms: tuple[float, ...]

    @classmethod
    def through(cls, parameters: Iterable[str], points: Iterable[tuple[float, float]]) -> Curve:
        """The non-decreasing curve through ``points`` of (size, ms) by least squares (isotonic regression).

        Example:
            >>> Curve.through(["weight"], [(10, 1.0), (20, 3.0), (30, 2.0)]).ms
            (1.0, 2.5, 2.5)
        """
        by_size: dict[float, list[float]] = {}
        for size, ms in points:
            by_size.setdefault(float(size), []).append(ms)
        sizes = sorted(by_size)
        blocks: list[tuple[float, int, int]] = []  # (sum, points, sizes), whose means ascend
        for size in sizes:
            block = sum(by_size[size]), len(by_size[size]), 1
            while blocks and blocks[-1][0] / blocks[-1][1] >= block[0] / block[1]:
                last = blocks.pop()
                block = last[0] + block[0], last[1] + block[1], last[2] + block[2]
            blocks.append(block)
        return cls(tuple(parameters), tuple(sizes), tuple(s / n for s, n, width in blocks for _ in range(width)))

    def at(self, sizes: Mapping[str, float]) -> float:
        """Milliseconds for these sizes of the parameters, interpolated; 0 if all of them are removed."""
        present = [sizes[name] for name in self.parameters if name in sizes]
        return float(np.interp(sum(present), self.sizes, self.ms)) if present else 0.0


@dataclass(frozen=True)
class LatencyTable:
    """Latency of every layer, and of all operations outside of layers, as functions of the widths.

    Attributes:
        curves: One curve for each layer, and one for all other operations, as a function of all parameters.
        dense_ms: Milliseconds of the network that was measured.
    """

    curves: tuple[Curve, ...]
    dense_ms: float

    def ms(self, coupling: Coupling, removed: Mapping[str, int]) -> float:
        """Estimated milliseconds of a pass once these numbers of units are removed from each group."""
        sizes = {name: prod(dim.after(removed) for dim in dims) for name, dims in coupling.param_dims.items()}
        return sum(curve.at(sizes) for curve in self.curves)
