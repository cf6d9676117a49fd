"""``PruningSummary``: table of all pruning rounds, and comparison of the dense and the final network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import nn

from lightning_prune.budgets.combined import All
from lightning_prune.budgets.compressed_size import FileSize
from lightning_prune.callbacks.guard.accuracy_guard import AccuracyGuard
from lightning_prune.callbacks.guard.verdict import Verdict
from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning
from lightning_prune.callbacks.pruning.pruning_callbacks import check_pruning, count_events, pruning_callbacks
from lightning_prune.callbacks.reporting.hyperparameters import as_code
from lightning_prune.callbacks.reporting.rounds_table import SummaryRow, rounds_table
from lightning_prune.callbacks.trainer.lightning_packages import (
    MODEL_CHECKPOINTS,
    TENSORBOARD_LOGGERS,
    Callback,
    overrides,
)
from lightning_prune.callbacks.trainer.strategies import check_whole
from lightning_prune.file_size import compressed_size
from lightning_prune.network.copies import copy_of
from lightning_prune.network.pass_latency import compare_latency
from lightning_prune.network.size import Size, measure
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report

LATENCY_BATCH = 64  # batch size of latency measurements


class PruningSummary(Callback):
    """Prints a table of all pruning rounds, and compares the dense network with the final one.

    The dense network is saved as ``dense.ckpt`` next to the other checkpoints, just before the first event.

    Args:
        monitor: Metric in the table. Default: the metric that ``AccuracyGuard``, or else ``ModelCheckpoint``, monitors.
    """

    def __init__(self, monitor: str | None = None) -> None:
        self.monitor = monitor
        self.rounds: list[SummaryRow] = []
        self._verdict = ""
        self._metric: float | None = None  # at the last validation
        self.dense_path: str | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Determine the metric in the table."""
        check_whole(trainer, self)
        if stage == "fit":
            check_pruning(trainer, self)
        monitoring = [c for c in trainer.callbacks if isinstance(c, (AccuracyGuard, *MODEL_CHECKPOINTS))]  # type: ignore[attr-defined]
        monitors = (getattr(callback, "monitor", None) for callback in monitoring)
        self.monitor = self.monitor or next(filter(None, monitors), None)

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """Add and save the dense network, again each time that the first event is held back."""
        if len(self.rounds) < 2:
            self.rounds = [SummaryRow(0, measure(pl_module, pruning.example), 0.0, self._metric, self._verdict)]
            self.dense_path = str(Path(_folder(trainer)).absolute() / "dense.ckpt")
            trainer.save_checkpoint(self.dense_path, weights_only=True)

    def on_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan, report: Report) -> None:
        """Add a row."""
        self.rounds.append(SummaryRow(trainer.current_epoch, report.after, report.sparsity))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Update the metric of the row."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if self.monitor in trainer.callback_metrics:
            self._metric = float(trainer.callback_metrics[self.monitor])
            if self.rounds:
                self._row.metric = self._metric

    def on_verdict(self, trainer: pl.Trainer, verdict: Verdict) -> None:
        """Add the verdict to the row; a verdict on the dense network may precede the first row."""
        self._verdict = verdict.short
        if self.rounds:
            self._row.verdict = verdict.short

    def on_rollback(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Mark the rows of rolled-back networks."""
        for row in [row for row in self.rounds if not row.gone][1 + count_events(trainer) :]:
            row.gone = True

    @property
    def _row(self) -> SummaryRow:
        """Row of the current network."""
        return next(row for row in reversed(self.rounds) if not row.gone)

    def state_dict(self) -> dict[str, Any]:
        """Rows as plain dicts."""
        rows = [{**vars(r), "size": vars(r.size).copy()} for r in self.rounds]
        return {"rounds": rows, "dense_path": self.dense_path, "metric": self._metric}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.rounds = [SummaryRow(**{**row, "size": Size(**row["size"])}) for row in state_dict["rounds"]]
        self.dense_path, self._metric = state_dict["dense_path"], state_dict["metric"]

    def conclude(self, trainer: pl.Trainer, model: pl.LightningModule, datamodule: Any = None) -> None:
        """Test the dense and the final network, compare their latency, and print the summary; call it after ``fit``.

        The final network is the best checkpoint at the final size if ``ModelCheckpoint`` monitors a metric, otherwise
        the network at the end of training; ``model`` holds it afterwards. Networks are tested only if there are test
        data.

        Args:
            trainer: The Trainer that ran ``fit``.
            model: The LightningModule.
            datamodule: Data module with test data. Default: the LightningModule itself.
        """
        rounds, dense = list(self.rounds), self.dense_path  # testing a checkpoint restores the callbacks from it
        files = {"dense": dense, "final": _best(trainer) or _save_last(trainer)}
        testable = overrides(model, "test_step") and overrides(datamodule or model, "test_dataloader")
        tested: dict[str, dict[str, float]] = {}
        networks: dict[str, nn.Module] = {}
        for name, path in files.items():
            if path is None or not Path(path).is_file():  # the dense file of a resumed training may be missing
                continue
            if testable:
                results = trainer.test(model, datamodule=datamodule, ckpt_path=path, verbose=False)
                tested[name] = {metric: value for result in results for metric, value in result.items()}
            else:
                model.load_state_dict(torch.load(path, map_location=model.device, weights_only=True)["state_dict"])
            networks[name] = copy_of(model)
        self.rounds, self.dense_path = rounds, dense
        shown = {name: str(files[name]) for name in networks}
        self._print(trainer, shown, tested, _latencies(trainer, networks), _compressed(trainer, networks))

    @rank_zero_only
    def _print(
        self,
        trainer: pl.Trainer,
        files: dict[str, str],
        tested: dict[str, dict[str, float]],
        latencies: dict[str, float],
        compressed: dict[str, int],
    ) -> None:
        console = Console(highlight=False, soft_wrap=True)
        if self.rounds:
            console.print(rounds_table(self.rounds, self.monitor), soft_wrap=False)
        for pruning in pruning_callbacks(trainer):
            if pruning.pruner.fraction < 1:
                console.print(
                    f"{as_code(pruning.pruner.budget)} is not reached: the training ended at fraction "
                    f"{pruning.pruner.fraction:.2f} of the schedule, at sparsity {pruning.sparsity:.3f}",
                    soft_wrap=False,
                )
        for metric in tested.get("final", {}):
            values = ", ".join(f"{name} {result[metric]:.4f}" for name, result in tested.items())
            console.print(f"{metric}: {values}")
        if not tested:
            console.print("not tested: there is no test_step or no test_dataloader")
        if len(latencies) == 2:
            dense, pruned = (1000 * latencies[name] for name in ("dense", "final"))
            console.print(
                f"speed-up: {dense / pruned:.2f} x on this machine "
                f"(batch of {LATENCY_BATCH}: {dense:.2f} ms -> {pruned:.2f} ms)"
            )
        if compressed:
            sizes = ", ".join(f"{name} {size / 1e6:.3f} MB" for name, size in compressed.items())
            console.print(f"compressed state dict: {sizes}")
        for name, path in reversed(files.items()):
            console.print(f"{'checkpoint' if name == 'final' else 'dense network'}: {_relative(path)}")
        for logger in trainer.loggers:
            if isinstance(logger, TENSORBOARD_LOGGERS):
                console.print(f"logs: tensorboard --logdir {_relative(logger.log_dir)}")


def _latencies(trainer: pl.Trainer, networks: dict[str, nn.Module]) -> dict[str, float]:
    example = next((pruning.example for pruning in pruning_callbacks(trainer) if pruning.example is not None), None)
    if example is None or len(networks) < 2:
        return {}
    device = next(networks["final"].parameters()).device
    example = example.repeated(LATENCY_BATCH).to(device)
    return compare_latency({name: net.to(device) for name, net in networks.items()}, example)


def _compressed(trainer: pl.Trainer, networks: dict[str, nn.Module]) -> dict[str, int]:
    """Sizes of the compressed state dicts in bytes, if a budget limits them."""
    budgets = [pruning.pruner.budget for pruning in pruning_callbacks(trainer)]
    parts = [part for budget in budgets for part in (budget.budgets if isinstance(budget, All) else (budget,))]
    if not any(isinstance(part, FileSize) for part in parts):
        return {}
    return {name: compressed_size(network.state_dict()) for name, network in networks.items()}


def _best(trainer: pl.Trainer) -> str | None:
    checkpoint = trainer.checkpoint_callback
    if isinstance(checkpoint, MODEL_CHECKPOINTS) and checkpoint.best_model_score is not None:
        return checkpoint.best_model_path
    return None


def _save_last(trainer: pl.Trainer) -> str:
    path = str(Path(_folder(trainer)) / "final.ckpt")
    trainer.save_checkpoint(path)
    return path


def _folder(trainer: pl.Trainer) -> str:
    checkpoint = trainer.checkpoint_callback
    folder = checkpoint.dirpath if isinstance(checkpoint, MODEL_CHECKPOINTS) else None
    return str(folder or trainer.log_dir or trainer.default_root_dir)


def _relative(path: str) -> str:
    """``path`` relative to the working directory, if it is inside."""
    absolute, here = Path(path).absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
