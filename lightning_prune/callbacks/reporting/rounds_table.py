"""Table of pruning rounds, for the summary."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.table import Table

from lightning_prune.network.size import Size


@dataclass
class SummaryRow:
    """Row of the table: a network between two events.

    Attributes:
        epoch: Epoch of the event that led to this network; 0 for the dense one.
        size: Parameters and MACs.
        sparsity: Fraction removed from the original, in [0, 1].
        metric: Monitored metric at its last validation; None before one.
        verdict: Verdict of the guard; empty without a guard.
        gone: Whether a rollback has removed it.
    """

    epoch: int
    size: Size
    sparsity: float
    metric: float | None = None
    verdict: str = ""
    gone: bool = False


def rounds_table(rounds: list[SummaryRow], monitor: str | None) -> Table:
    """The rows as a table for a terminal of 80 columns; names and verdicts are wrapped before numbers are cut."""
    table = Table(title="Pruning, round by round", box=box.SIMPLE_HEAD, pad_edge=False)
    masked = any(row.size.nonzero < 0.99 * row.size.params for row in rounds)
    for column in ("round", "epoch", "nonzero" if masked else "parameters", "MACs", "sparsity"):
        table.add_column(column, justify="right", no_wrap=True)
    metrics = ["" if row.metric is None else f"{row.metric:.4f}" for row in rounds]
    table.add_column(monitor or "metric", justify="right", overflow="fold", min_width=max(map(len, metrics), default=0))
    table.add_column("guard", overflow="fold", min_width=9)
    for number, row in enumerate(rounds):
        table.add_row(
            "dense" if number == 0 else str(number),
            "" if number == 0 else str(row.epoch),
            f"{row.size.nonzero if masked else row.size.params:,}",
            "" if row.size.macs is None else f"{row.size.macs:,}",
            f"{row.sparsity:.3f}",
            metrics[number],
            row.verdict,
        )
    return table
