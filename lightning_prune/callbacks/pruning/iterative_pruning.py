"""``IterativePruning``: the callback that prunes a network in rounds during training."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.budgets.budget import Budget
from lightning_prune.callbacks.loading import let_load_from_checkpoint, prepare_loading
from lightning_prune.callbacks.pruning.checks import check_regrowth, check_start
from lightning_prune.callbacks.pruning.events import PruningEvents
from lightning_prune.callbacks.trainer.example_batch import declared_example, example_from_batch
from lightning_prune.callbacks.trainer.lightning_packages import Callback
from lightning_prune.callbacks.trainer.listeners import as_misconfiguration, callbacks_of
from lightning_prune.callbacks.trainer.strategies import check_optimizers, check_trainer
from lightning_prune.callbacks.trainer.training_time import warn_if_cut_short, warn_if_not_reached, window_is_open
from lightning_prune.checkpoint.manifest import track_shapes
from lightning_prune.criteria.by_name import criterion_named
from lightning_prune.criteria.criterion import Criterion
from lightning_prune.criteria.magnitude import Magnitude
from lightning_prune.granularity import Blocks, Channels, Granularity
from lightning_prune.network.example_input import Example
from lightning_prune.pruners.arguments import check_types
from lightning_prune.pruners.factory import budget_for, make_pruner
from lightning_prune.pruners.pruner import Pruner
from lightning_prune.schedules.schedule import Schedule
from lightning_prune.scope import Scope
from lightning_prune.surgery.report import Report


class IterativePruning(Callback):
    """Prunes the network in rounds during training.

    Each round, or *event*, takes place where an epoch begins (with schedules in steps or shares of the training: where
    an accumulation window begins). Every pruned network is therefore trained before it is saved, no checkpoint stores
    a metric that belongs to a different network, and ``ModelCheckpoint`` tracks the best network of each size
    separately. Callbacks that implement them receive ``on_before_prune(trainer, pl_module, pruning)`` when an event is
    due, and ``on_prune(trainer, pl_module, plan, report)`` after it.

    Args:
        schedule: Sparsity schedule: when events take place, and which fraction of the way to the budget each reaches.
        budget: Target size, reached at the end of the schedule. Required for every granularity except ``NM``, which
            has none.
        criterion: Saliency criterion that scores channels, weights or blocks, or the name of one that needs no
            arguments, such as ``"taylor"``. Default: ``Magnitude()``.
        granularity: What is pruned: ``Channels()`` removes channels and ``Blocks()`` residual blocks, ``Weights()``
            masks single weights, ``NM(2, 4)`` all but two of every four. Default: ``Channels()``.
        scope: Modules that may be pruned. Default: all.

    Raises:
        MisconfigurationException: If the arguments cannot be combined.

    Example:
        >>> from lightning_prune.budgets import MACs
        >>> from lightning_prune.schedules import Rounds
        >>> pruning = IterativePruning(Rounds(start=5, every=5, count=8), MACs(keep=0.4), criterion="taylor")
    """

    def __init__(
        self,
        schedule: Schedule,
        budget: Budget | None = None,
        criterion: Criterion | str | None = None,
        granularity: Granularity | None = None,
        scope: Scope | None = None,
    ) -> None:
        self.granularity = Channels() if granularity is None else granularity
        scope = Scope() if scope is None else scope
        with as_misconfiguration():
            budget = budget_for(self.granularity, budget)
            named = criterion_named(criterion) if isinstance(criterion, str) else criterion
            criterion = Magnitude() if named is None else named
            check_types(
                "IterativePruning",
                schedule=schedule, budget=budget, criterion=criterion, granularity=self.granularity, scope=scope,
            )  # fmt: skip
            assert budget is not None
            self.pruner = make_pruner(self.granularity, criterion, budget, scope)
        check_start(self.pruner, schedule)
        self.schedule = schedule
        self._events = PruningEvents(self.pruner, schedule, getattr(self.granularity, "regrow", None))

    @property
    def state_key(self) -> str:
        """Key in checkpoints: one for each granularity and scope, since several pruners can share a Trainer."""
        return self._generate_state_key(granularity=type(self.granularity).__name__, scope=repr(self.pruner.scope))

    @property
    def sparsity(self) -> float:
        """Fraction removed from the original, in [0, 1]."""
        return self.pruner.sparsity

    @property
    def example(self) -> Example | None:
        """Example input of the network's ``forward``; None before it is available."""
        return self._events.example

    def pause(self, reason: str) -> None:
        """Hold back the event that is due; to be called in ``on_before_prune``.

        The event is tried again after each validation, and the schedule is postponed meanwhile.
        """
        self._events.hold_back(reason)

    def roll_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, state: dict[str, Any]) -> None:
        """Return to ``state``, to which the network has been rolled back, and continue with smaller steps.

        The history keeps the events that were rolled back.
        """
        self._events.roll_back(trainer, pl_module, state)

    def apply_masks(self) -> None:
        """Zero the masked weights, for callbacks that have changed weights."""
        self._events.apply_masks()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Prepare loading of pruned checkpoints; reject unsupported strategies."""
        prepare_loading(pl_module)
        let_load_from_checkpoint(trainer, pl_module)
        if stage == "fit":
            check_trainer(trainer, self.granularity)
            check_regrowth(trainer, self.granularity)
            self._events.setup(pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the network, which may have been built after ``setup``, and its optimizers."""
        track_shapes(pl_module)
        check_optimizers(trainer, self.granularity)
        self._events.begin_fit(pl_module, self.state_key, self._others(trainer))
        example = declared_example(pl_module)
        if example is not None:
            self._events.prepare(pl_module, example)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the schedule with the length of the training, and enforce masks."""
        warn_if_cut_short(trainer, self.schedule)
        self._events.begin_training(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prune if an event is due."""
        self._events.prune_if_due(trainer, pl_module, self, 0)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the example input from the first batch; prune between accumulation windows if an event is due."""
        if not self._events.prepared:
            self._prepare_all(trainer, pl_module, batch, batch_idx)
        if not window_is_open(trainer, batch_idx):
            self._events.prune_if_due(trainer, pl_module, self, batch_idx)
            if trainer.should_stop and trainer.fit_loop._can_stop_early:
                raise StopIteration  # a listener ends the training: as Lightning does it, without this batch
        self._events.begin_batch(pl_module, batch_idx)
        pl_module.log("sparsity", self.sparsity, prog_bar=True, logger=False, on_step=True, on_epoch=False)

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """Analyze the network before another pruner changes it: shares refer to the original."""
        if not self._events.prepared and pruning.example is not None:
            self._events.prepare(pl_module, pruning.example)

    def follow_pruning(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: Report) -> None:
        """Adapt to an event of this pruner or another."""
        self._events.follow(trainer, pl_module, report)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Pass the loss to the statistics, some of which differentiate it themselves."""
        self._events.before_backward(trainer, loss)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add one backward pass to the statistics."""
        self._events.after_backward(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Pass all gradients to the statistics; then mask them, so that clipping ignores those of masked weights."""
        self._events.before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check that the first batches reach every layer that is to be scored."""
        self._events.end_batch(trainer, pl_module, batch_idx)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate with masked weights at zero, even if another callback has changed them."""
        self._events.begin_validation(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the metrics, and try an event that is held back again."""
        self._events.end_validation(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Zero the masked weights before checkpoints are saved, even if another callback has changed them."""
        self._events.apply_masks()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn if the training ended before the schedule."""
        if not self._events.finished:
            warn_if_not_reached(trainer, self.schedule, self.pruner.fraction)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove all hooks from the network and the optimizers; later checkpoints still hold the pruned shapes."""
        self._events.teardown()

    def state_dict(self) -> dict[str, Any]:
        """State of pruning as plain numbers, dicts and tensors."""
        return self._events.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._events.load_state_dict(state_dict)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Complete the checkpoint so that every rank can resume from it; refuse one in the middle of an event."""
        self._events.complete_checkpoint(trainer, checkpoint["callbacks"][self.state_key])

    def _prepare_all(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Prepare all pruners, and let them prune first if their events were due when the epoch began."""
        late = [c for c in callbacks_of(trainer, IterativePruning) if not c._events.prepared]
        for pruning in late:
            removes = isinstance(pruning.granularity, (Channels, Blocks))
            pruning._events.prepare(pl_module, example_from_batch(pl_module, batch, removes))
        for pruning in late if batch_idx == 0 else ():
            pruning._events.prune_if_due(trainer, pl_module, pruning, 0)

    def _others(self, trainer: pl.Trainer) -> list[Pruner]:
        """The other pruners of the same kind in this training."""
        others = [c.pruner for c in callbacks_of(trainer, IterativePruning) if c is not self]
        return [pruner for pruner in others if type(pruner) is type(self.pruner)]
