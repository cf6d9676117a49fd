"""Trade-off figure: a metric against the size of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Position = tuple[float, float]

_LABEL = (0.14, 0.09)  # width and height of a label, in shares of the axes
_LOG_FROM = 5.0  # ratio of the largest to the smallest size


@dataclass(frozen=True)
class TradeoffPoint:
    """Point of the figure: a network between two events, at its last validation.

    Attributes:
        event: Number of earlier events; 0 for the dense network.
        epoch: Epoch of the validation.
        parameters: Number of parameters.
        nonzero: Number of parameters that are not exactly zero.
        value: Monitored metric.
    """

    event: int
    epoch: int
    parameters: int
    nonzero: int
    value: float


def tradeoff_figure(points: Sequence[TradeoffPoint], monitor: str, nonzero: bool) -> Figure:
    """Figure of the metric against the size, with one point for each network between two events.

    Args:
        points: The networks, the dense one first.
        monitor: Name of the metric.
        nonzero: Whether to count only nonzero parameters, for networks with masks.
    """
    from matplotlib.figure import Figure  # takes 0.5 s, only spent with TensorBoard
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(6.4, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    sizes = [point.nonzero if nonzero else point.parameters for point in points]
    values = [point.value for point in points]
    axes.plot(sizes, values, color="0.75", linewidth=1, zorder=1)
    axes.scatter(sizes, values, s=36, zorder=2, color=["tab:orange" if p.event == 0 else "tab:blue" for p in points])
    if max(sizes) > _LOG_FROM * min(sizes) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.margins(x=0.17, y=0.12)  # labels are to the upper left of points, off the typical curve
    to_axes = axes.transLimits.transform
    placed = [tuple(to_axes(axes.transScale.transform(xy))) for xy in zip(sizes, values, strict=True)]
    for index in _apart(placed):
        point = points[index]
        text = f"dense, epoch {point.epoch}" if point.event == 0 else f"epoch {point.epoch}"
        axes.annotate(text, (sizes[index], point.value), (-5, 4), textcoords="offset points", ha="right", fontsize=9)
    axes.set_xlabel("nonzero parameters" if nonzero else "parameters")
    axes.set_ylabel(monitor)
    axes.set_title(f"{monitor} at the last validation of each size", fontsize=11)
    axes.grid(alpha=0.3)
    return figure


def _apart(positions: Sequence[_Position]) -> Iterator[int]:
    """Indices of points whose labels do not overlap: the first, then from the last to the second."""
    labelled: list[_Position] = []
    for index in [0, *range(len(positions) - 1, 0, -1)]:
        x, y = positions[index]
        if all(abs(x - u) > _LABEL[0] or abs(y - v) > _LABEL[1] for u, v in labelled):
            labelled.append((x, y))
            yield index
