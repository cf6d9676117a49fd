"""The table at the end: every round, and what came out of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_prune.callbacks.guard import AccuracyGuard, Verdict
from lightning_prune.callbacks.pruning import IterativePruning
from lightning_prune.measure import Size, compare_latency, measure
from lightning_prune.plan import Plan
from lightning_prune.report import Report

LATENCY_BATCH = 64  # examples a pass


@dataclass
class Round:
    """One row: a network between two events.

    Attributes:
        epoch: Epoch in which the network got this size; 0 for the dense one.
        size: What it costs.
        sparsity: Fraction of the original that is gone.
        metric: The monitored metric at its last validation, None before one.
        verdict: What the guard said of it, empty without a guard.
    """

    epoch: int
    size: Size
    sparsity: float
    metric: float | None = None
    verdict: str = ""


class PruningSummary(Callback):
    """Collects one row for each round, keeps the dense network, and prints what pruning has brought.

    The dense network is saved as ``dense.ckpt`` beside the other checkpoints just before the first event.

    Args:
        monitor: Metric of the rows; by default the one that ``AccuracyGuard`` or else ``ModelCheckpoint`` monitors.
    """

    def __init__(self, monitor: str | None = None) -> None:
        self.monitor = monitor
        self.rounds: list[Round] = []
        self._verdict = ""
        self.dense_path: str | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find out which metric the rows show."""
        if stage == "fit" and not any(isinstance(c, IterativePruning) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException("PruningSummary has no pruning to sum up; add IterativePruning(...)")
        watchers = [c for c in trainer.callbacks if isinstance(c, (AccuracyGuard, ModelCheckpoint)) and c.monitor]  # type: ignore[attr-defined]
        if self.monitor is None and watchers:
            self.monitor = watchers[0].monitor

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """Begin with the dense network."""
        if not self.rounds:
            self.rounds.append(Round(0, measure(pl_module, pruning.example), 0.0, verdict=self._verdict))
            self._note_metric(trainer)
            self.dense_path = str(Path(_folder(trainer)) / "dense.ckpt")
            trainer.save_checkpoint(self.dense_path, weights_only=True)

    def on_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan, report: Report) -> None:
        """Begin a row."""
        self.rounds.append(Round(trainer.current_epoch, report.after, report.sparsity))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the row up to date."""
        if self.rounds and not trainer.sanity_checking:
            self._note_metric(trainer)

    def on_verdict(self, trainer: pl.Trainer, verdict: Verdict) -> None:
        """Enter what the guard says of the row; of the dense network it may speak before the first row is there."""
        self._verdict = verdict.short
        if self.rounds:
            self.rounds[-1].verdict = verdict.short

    def state_dict(self) -> dict[str, Any]:
        """Rows as plain dicts."""
        rows = [{**vars(r), "size": vars(r.size).copy()} for r in self.rounds]
        return {"rounds": rows, "dense_path": self.dense_path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.rounds = [Round(**{**row, "size": Size(**row["size"])}) for row in state_dict["rounds"]]
        self.dense_path = state_dict["dense_path"]

    def conclude(self, trainer: pl.Trainer, model: pl.LightningModule, datamodule: Any = None) -> None:
        """Test the dense and the final network, compare their speed, and print everything. Call it after ``fit``.

        The final network is the best checkpoint at the final size where ``ModelCheckpoint`` monitors a metric, else
        the network as training left it; ``model`` holds it afterwards.

        Args:
            trainer: The Trainer that ran ``fit``.
            model: The LightningModule.
            datamodule: Where the test data come from; without it, from the module itself.
        """
        rounds, dense = list(self.rounds), self.dense_path  # testing a checkpoint restores callbacks from it
        final = _best(trainer) or _save_last(trainer)
        tested: dict[str, Mapping[str, float]] = {}
        networks: dict[str, nn.Module] = {}
        for name, path in (("dense", dense), ("final", final)):
            if path is not None:
                (tested[name],) = trainer.test(model, datamodule=datamodule, ckpt_path=path, verbose=False)
                networks[name] = copy.deepcopy(model)
        self.rounds, self.dense_path = rounds, dense
        self._print(trainer, tested, _speeds(trainer, networks), final)

    def _note_metric(self, trainer: pl.Trainer) -> None:
        if self.monitor in trainer.callback_metrics:
            self.rounds[-1].metric = float(trainer.callback_metrics[self.monitor])

    @rank_zero_only
    def _print(
        self, trainer: pl.Trainer, tested: dict[str, Mapping[str, float]], speeds: dict[str, float], final: str
    ) -> None:
        console = Console()
        console.print(rounds_table(self.rounds, self.monitor))
        for metric in tested["final"]:
            values = ", ".join(f"{name} {result[metric]:.4f}" for name, result in tested.items())
            console.print(f"{metric}: {values}", highlight=False)
        if len(speeds) == 2:
            dense, pruned = (1000 * speeds[name] for name in ("dense", "final"))
            console.print(
                f"speed-up: {dense / pruned:.2f} x on this machine "
                f"(batch of {LATENCY_BATCH}: {dense:.2f} ms -> {pruned:.2f} ms)",
                highlight=False,
            )
        console.print(f"checkpoint: {_shown(final)}", highlight=False, soft_wrap=True)
        if self.dense_path is not None:
            console.print(f"dense network: {_shown(self.dense_path)}", highlight=False, soft_wrap=True)
        if trainer.log_dir is not None:
            console.print(f"logs: tensorboard --logdir {_shown(trainer.log_dir)}", highlight=False, soft_wrap=True)


def rounds_table(rounds: list[Round], monitor: str | None) -> Table:
    """The rows as a table for a terminal."""
    table = Table(title="Pruning, round by round")
    masked = any(row.size.nonzero < 0.99 * row.size.params for row in rounds)
    for column in ("round", "epoch", "nonzero" if masked else "parameters", "MACs", "sparsity", monitor or "metric"):
        table.add_column(column, justify="right")
    table.add_column("guard", no_wrap=True)
    for number, row in enumerate(rounds):
        table.add_row(
            "dense" if number == 0 else str(number),
            "" if number == 0 else str(row.epoch),
            f"{row.size.nonzero if masked else row.size.params:,}",
            "" if row.size.macs is None else f"{row.size.macs:,}",
            f"{row.sparsity:.3f}",
            "" if row.metric is None else f"{row.metric:.4f}",
            row.verdict,
        )
    return table


def _speeds(trainer: pl.Trainer, networks: dict[str, nn.Module]) -> dict[str, float]:
    pruning = next((c for c in trainer.callbacks if isinstance(c, IterativePruning)), None)  # type: ignore[attr-defined]
    if pruning is None or pruning.example is None or len(networks) < 2:
        return {}
    device = next(networks["final"].parameters()).device
    example = pruning.example.repeated(LATENCY_BATCH).to(device)
    return compare_latency({name: net.to(device) for name, net in networks.items()}, example)


def _best(trainer: pl.Trainer) -> str | None:
    checkpoint = trainer.checkpoint_callback
    if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_score is not None:
        return checkpoint.best_model_path
    return None


def _save_last(trainer: pl.Trainer) -> str:
    path = str(Path(_folder(trainer)) / "final.ckpt")
    trainer.save_checkpoint(path)
    return path


def _folder(trainer: pl.Trainer) -> str:
    checkpoint = trainer.checkpoint_callback
    folder = checkpoint.dirpath if isinstance(checkpoint, ModelCheckpoint) else None
    return str(folder or trainer.log_dir or trainer.default_root_dir)


def _shown(path: str) -> str:
    """``path`` below the working directory, if it is there."""
    absolute, here = Path(path).absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
