"""Latency table: the latency of each layer as a function of its number of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from lightning_prune.coupling.groups import Coupling


@dataclass(frozen=True)
class Conditions:
    """Under which latency is measured.

    Attributes:
        batch: Examples in a pass.
        device: The device, None for that of the network.
    """

    batch: int = 1
    device: str | None = None


@dataclass(frozen=True)
class Curve:
    """How long a part of the network takes, by its number of parameters; never less with more of them.

    Attributes:
        parameters: Names of the parameters that count.
        sizes: Numbers of parameters, ascending.
        ms: Milliseconds at each, ascending.
    """

    parameters: tuple[str, ...]
    sizes: tuple[float, ...]
    ms: tuple[float, ...]

    @classmethod
    def through(cls, parameters: Iterable[str], points: Iterable[tuple[float, float]]) -> Curve:
        """The ascending curve nearest to ``points`` of (size, ms), by least squares (isotonic regression).

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
        """Milliseconds where the parameters have these sizes, interpolated; none where all of them are gone."""
        left = [sizes[name] for name in self.parameters if name in sizes]
        return float(np.interp(sum(left), self.sizes, self.ms)) if left else 0.0


@dataclass(frozen=True)
class LatencyTable:
    """What every layer, and all that is in no layer, takes at a few widths.

    Attributes:
        curves: One for each layer, and one for the rest, which goes by all parameters.
        dense_ms: Milliseconds of the network that it was measured on.
    """

    curves: tuple[Curve, ...]
    dense_ms: float

    def ms(self, coupling: Coupling, removed: Mapping[str, int]) -> float:
        """Milliseconds that are foreseen once so many units of each group are removed."""
        sizes = {name: prod(dim.after(removed) for dim in dims) for name, dims in coupling.param_dims.items()}
        return sum(curve.at(sizes) for curve in self.curves)
