"""``SparsityLogger``: logs sizes and sparsities to the loggers of the Trainer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_prune.callbacks.guard.accuracy_guard import AccuracyGuard
from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning
from lightning_prune.callbacks.pruning.pruning_callbacks import check_pruning, count_events, pruning_callbacks
from lightning_prune.callbacks.reporting.hyperparameters import declare_columns, describe, saved_hyperparameters
from lightning_prune.callbacks.reporting.layer_metrics import original_weights, size_metrics
from lightning_prune.callbacks.reporting.tensorboard import add_histograms, layout
from lightning_prune.callbacks.reporting.tradeoff_figure import TradeoffPoint, tradeoff_figure
from lightning_prune.callbacks.trainer.lightning_packages import (
    TENSORBOARD_LOGGERS,
    Callback,
    MisconfigurationException,
)
from lightning_prune.callbacks.trainer.strategies import check_whole
from lightning_prune.granularity import Blocks, Channels
from lightning_prune.network.size import count_macs, nonzero_in
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report


class SparsityLogger(Callback):
    """Logs the size and sparsity of the network at the start of training, at each event and at the end of each epoch.

    All loggers receive the metrics ``pruning/...``, ``sparsity/<layer>`` and ``width/<layer>``, on the step axis of
    Lightning's metrics. ``TensorBoardLogger`` also receives a layout for CUSTOM SCALARS, histograms at each event
    (``scores/...``, for masks ``weights/...``), a figure of the metric against the number of parameters, and a row in
    HPARAMS with the final values.

    Args:
        monitor: Metric that validation logs, for the figure and the HPARAMS row. Default: the metric that
            ``AccuracyGuard`` monitors; without a guard there is no figure.
        histograms: Whether to write histograms.

    Raises:
        MisconfigurationException: If the Trainer has no ``IterativePruning``, or validation does not log the metric.
    """

    def __init__(self, monitor: str | None = None, histograms: bool = True) -> None:
        self.monitor, self.histograms = monitor, histograms
        self.points: list[TradeoffPoint] = []
        self._original: dict[str, int] = {}
        self._metric = monitor
        self._macs: int | None = None
        self._suffix = ""  # of the pruner whose event takes place
        self._first_step, self._last_step = 0, -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Record the size of the dense network, before a checkpoint is loaded."""
        if stage != "fit":
            return
        check_pruning(trainer, self)
        check_whole(trainer, self)
        guards = [c for c in trainer.callbacks if isinstance(c, AccuracyGuard)]  # type: ignore[attr-defined]
        self._metric = guards[0].monitor if self.monitor is None and guards else self.monitor
        self._original = self._original or original_weights(pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Declare the hyperparameters and the final metrics."""
        if not trainer.loggers:
            rank_zero_warn(
                "SparsityLogger has no logger to write to; add one to the Trainer, such as TensorBoardLogger"
            )
        sparsities = [f"result/sparsity{suffix}" for suffix in _pruners(trainer)]
        metrics = [] if self._metric is None else [f"result/{self._metric}"]
        names = [*metrics, *sparsities, "result/parameters", "result/nonzero_parameters", "result/macs"]
        for logger in _tensorboards(trainer):
            declare_columns(logger, self._hyperparameters(trainer, pl_module), names)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the initial network: dense, or loaded from a checkpoint."""
        if self._metric is not None and not trainer.enable_validation:
            rank_zero_warn(f"SparsityLogger plots {self._metric!r} at each size, but no validation runs")
        self._original = self._original or original_weights(pl_module)
        self._macs, self._first_step = None, _step(trainer)
        for logger in _tensorboards(trainer):
            logger.experiment.add_custom_scalars(layout(self._metric))
        self._log(trainer, pl_module, self._first_step)
        self._log_macs(trainer, pl_module, self._first_step)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Log the initial MACs, which need the first batch if the module has no ``example_input_array``."""
        self._log_macs(trainer, pl_module, self._first_step)

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """Log the network before the event, so that curves have a step there."""
        self._suffix = next(suffix for suffix, pruner in _pruners(trainer).items() if pruner is pruning)
        self._log_macs(trainer, pl_module, self._first_step)
        if _step(trainer) - 1 > self._last_step:
            self._log(trainer, pl_module, _step(trainer) - 1)

    def on_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan, report: Report) -> None:
        """Log the pruned network, and histograms of the scores."""
        self._macs = self._macs if report.after.macs is None else report.after.macs
        step = _step(trainer)
        self._log(trainer, pl_module, step)
        if self.histograms:
            for logger in _tensorboards(trainer):
                add_histograms(logger.experiment, "scores", self._suffix, report.scores, step)
                add_histograms(logger.experiment, "weights", self._suffix, _kept_weights(pl_module, plan), step)
        if self.points and self.points[-1].event == count_events(trainer) - 1:
            self._draw(trainer)

    def on_regrow(self, trainer: pl.Trainer, pl_module: pl.LightningModule, count: int) -> None:
        """Log the number of regrown weights."""
        for logger in trainer.loggers:
            logger.log_metrics({"pruning/regrown": count}, step=_step(trainer))

    def on_rollback(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the restored network; remove rolled-back networks from the figure."""
        self.points = [point for point in self.points if point.event <= count_events(trainer)]
        self._macs = None
        self._log_macs(trainer, pl_module, _step(trainer))
        self._log(trainer, pl_module, _step(trainer))

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that validation logs the metric."""
        if self._metric is not None:
            self._value(trainer, self._metric)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the metric; the last validation of each size is plotted."""
        if self._metric is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        point = TradeoffPoint(
            event=count_events(trainer),
            epoch=trainer.current_epoch,
            parameters=sum(parameter.numel() for parameter in pl_module.parameters()),
            nonzero=nonzero_in(parameter.detach() for parameter in pl_module.parameters()),
            value=self._value(trainer, self._metric),
        )
        self.points = [earlier for earlier in self.points if earlier.event != point.event] + [point]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the network at the step of the epoch's validation."""
        self._log(trainer, pl_module, max(_step(trainer) - 1, 0))  # where Lightning logs an epoch's metrics

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the figure and the final metrics."""
        self._draw(trainer)
        final = {f"result/{self._metric}": point.value for point in self.points[-1:]}
        for name, value in self._metrics(trainer, pl_module).items():
            if name.startswith("pruning/") and "fraction" not in name:
                final[name.replace("pruning", "result", 1)] = value
        for logger in _tensorboards(trainer):
            logger.log_hyperparams(self._hyperparameters(trainer, pl_module), final, _step(trainer))

    def state_dict(self) -> dict[str, Any]:
        """Points of the figure and sizes of the dense layers, as plain numbers."""
        return {"points": [asdict(point) for point in self.points], "original": dict(self._original)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.points = [TradeoffPoint(**point) for point in state_dict["points"]]
        self._original = dict(state_dict["original"])

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        # All ranks count, since counting in sharded parameters is collective; loggers write on rank 0.
        metrics = self._metrics(trainer, pl_module) if trainer.loggers else {}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
        self._last_step = step

    def _log_macs(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        examples = [pruner.example for pruner in _pruners(trainer).values() if pruner.example is not None]
        if self._macs is not None or not examples:
            return
        self._macs = count_macs(pl_module, examples[0])
        for logger in trainer.loggers:
            logger.log_metrics({"pruning/macs": self._macs}, step=step)

    def _metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for suffix, pruning in _pruners(trainer).items():
            metrics[f"pruning/sparsity{suffix}"] = pruning.sparsity
            metrics[f"pruning/fraction{suffix}"] = pruning.pruner.fraction
        return {**metrics, **size_metrics(pl_module, self._original, self._macs)}

    def _hyperparameters(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        params = saved_hyperparameters(trainer, pl_module)
        for suffix, pruning in _pruners(trainer).items():
            params.update(describe(pruning, suffix))
        return params

    def _draw(self, trainer: pl.Trainer) -> None:
        if not self.points or self._metric is None:
            return
        masks = any(not isinstance(pruning.granularity, (Channels, Blocks)) for pruning in _pruners(trainer).values())
        for logger in _tensorboards(trainer):
            figure = tradeoff_figure(self.points, self._metric, nonzero=masks)
            logger.experiment.add_figure("pruning/metric_against_size", figure, _step(trainer), close=False)

    def _value(self, trainer: pl.Trainer, metric: str) -> float:
        if metric not in trainer.callback_metrics:
            raise MisconfigurationException(
                f"SparsityLogger monitor={metric!r} is not logged by validation; "
                f"it logs {', '.join(sorted(trainer.callback_metrics)) or 'nothing'}"
            )
        return float(trainer.callback_metrics[metric])


def _pruners(trainer: pl.Trainer) -> dict[str, IterativePruning]:
    """The pruners by the suffix of their metrics: empty for a single one, else ``/channels``, ``/weights_2``."""
    found: dict[str, IterativePruning] = {}
    pruners = pruning_callbacks(trainer)
    for pruner in pruners:
        kind = f"/{type(pruner.granularity).__name__.lower()}" if len(pruners) > 1 else ""
        found[kind if kind not in found else f"{kind}_{len(found) + 1}"] = pruner
    return found


def _step(trainer: pl.Trainer) -> int:
    """Step axis of Lightning's metrics, which differs from ``global_step`` with several optimizers."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def _tensorboards(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    """The TensorBoard loggers, on rank 0."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger for logger in loggers if isinstance(logger, TENSORBOARD_LOGGERS)]


def _kept_weights(pl_module: pl.LightningModule, plan: Plan) -> dict[str, Tensor]:
    """|w| of the weights that the masks of ``plan`` keep."""
    parameters = dict(pl_module.named_parameters())
    return {
        name: parameters[name].detach()[mask.to(parameters[name].device)].abs() for name, mask in plan.masks.items()
    }
