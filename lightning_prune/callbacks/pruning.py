"""The pruner as a callback: it decides when; rooms below decide what."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_prune.budgets import Budget, BudgetError
from lightning_prune.callbacks.agenda import Agenda
from lightning_prune.callbacks.checks import (
    check_dense,
    check_gradients,
    check_groups,
    check_scopes,
    check_start,
    warn_unfollowed,
)
from lightning_prune.callbacks.clock import time_of, warn_if_cut_short, window_is_open
from lightning_prune.callbacks.decision import decide, over_ranks, unseen_anywhere
from lightning_prune.callbacks.example import declared_example, example_from_batch
from lightning_prune.callbacks.history import History
from lightning_prune.callbacks.loading import let_load_from_checkpoint, prepare_loading
from lightning_prune.callbacks.packages import Callback
from lightning_prune.callbacks.rebuild import carry_out, check_optimizers, check_trainer
from lightning_prune.callbacks.support import as_misconfiguration, forget_best, tell
from lightning_prune.coupling import Example
from lightning_prune.criteria import Criterion, Magnitude, criterion_named
from lightning_prune.functional import make_pruner
from lightning_prune.granularity import Channels, Granularity
from lightning_prune.kinds import check_kinds
from lightning_prune.manifest import is_pruned, track_shapes
from lightning_prune.masks import MaskKeeper
from lightning_prune.pruner import Pruner
from lightning_prune.report import Report
from lightning_prune.schedules import Schedule
from lightning_prune.scope import Scope
from lightning_prune.weight_pruner import WeightPruner

_CERTAIN = 50  # batches after which a layer without gradients is not just taking turns with another


class IterativePruning(Callback):
    """Make the network smaller, event by event, while it trains.

    Surgery happens where an epoch (or, for schedules in steps or shares, an accumulation window) begins, so no pruned
    network goes untrained and no checkpoint is filed under another network's metric; best-model tracking of
    ``ModelCheckpoint`` begins anew at every size. Other callbacks that have the methods are told:
    ``on_before_prune(trainer, pl_module, pruning)`` when an event is due, ``on_prune(trainer, pl_module, plan,
    report)`` after it.

    Args:
        schedule: When, and how far each time.
        budget: Until what; the schedule arrives there.
        criterion: What matters, an object or the name of one without arguments; ``Magnitude()`` by default.
        granularity: ``Channels()`` removes channels (the default), ``Weights()`` masks single weights.
        scope: Where; everywhere by default.

    Raises:
        MisconfigurationException: If the arguments do not go together.

    Example:
        >>> from lightning_prune.budgets import MACs
        >>> from lightning_prune.schedules import Rounds
        >>> pruning = IterativePruning(Rounds(start=5, every=5, count=8), MACs(keep=0.4), criterion="taylor")
    """

    def __init__(
        self,
        schedule: Schedule,
        budget: Budget,
        criterion: Criterion | str | None = None,
        granularity: Granularity | None = None,
        scope: Scope | None = None,
    ) -> None:
        self.granularity = Channels() if granularity is None else granularity
        scope = Scope() if scope is None else scope
        with as_misconfiguration():
            named = criterion_named(criterion) if isinstance(criterion, str) else criterion
            criterion = Magnitude() if named is None else named
            check_kinds(
                "IterativePruning",
                schedule=schedule, budget=budget, criterion=criterion, granularity=self.granularity, scope=scope,
            )  # fmt: skip
            self.pruner = make_pruner(self.granularity, criterion, budget, scope)
        check_start(self.pruner, schedule)
        self.schedule = schedule
        self._example: Example | None = None
        self._prepared = self._observed = self._finished = self._restored = self._came_pruned = False
        self._operating = False  # between the first tensor that an event changes and the last
        self._paused: str | None = None
        self._agenda = Agenda(schedule)
        self._masks = MaskKeeper({}, {})
        self._history = History()

    @property
    def state_key(self) -> str:
        """One key for each granularity and scope: several pruners can share a Trainer."""
        return self._generate_state_key(granularity=type(self.granularity).__name__, scope=repr(self.pruner.scope))

    @property
    def sparsity(self) -> float:
        """Fraction of the original that is gone, in [0, 1]."""
        return self.pruner.sparsity

    @property
    def example(self) -> Example | None:
        """What the network's forward receives, once it is known."""
        return self._example

    def pause(self, reason: str) -> None:
        """Hold back the event that is due; it is tried again after each validation, and the schedule waits for it."""
        self._paused = reason

    def take_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, state: dict[str, Any]) -> None:
        """The network is again what it was when ``state`` was saved: so is the pruner, which goes on in smaller steps.

        The history keeps what was tried.
        """
        self._agenda.take_back(self.pruner.fraction, state["pruner"]["fraction"])
        self.pruner.load_state_dict(state["pruner"])
        self._history.take_back(state["history"])
        if self.pruner.statistics is not None:
            totals = self.pruner.statistics.totals
            self.pruner.statistics.totals = {name: total.to(pl_module.device) for name, total in totals.items()}
        again, self._finished = self._finished and not state["finished"], state["finished"]
        if again:
            self._prepare(pl_module, self._example)
        self._hold_masks(trainer, pl_module)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Prepare loading of pruned checkpoints; refuse strategies that cannot work."""
        prepare_loading(pl_module)
        if stage == "fit":
            check_trainer(trainer, self.granularity)
            self._came_pruned = is_pruned(pl_module)
            self._example, self._prepared, self._observed, self._restored = None, False, False, False
            self._agenda, self._operating = Agenda(self.schedule), False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check what the network alone can tell; it may have been built since ``setup``."""
        track_shapes(pl_module)
        check_optimizers(trainer, self.granularity)
        if not (self._came_pruned or self._restored or self.pruner.event):
            check_dense(pl_module, self.state_key)
        with as_misconfiguration():
            check_scopes(self.pruner, self._others(trainer), pl_module)
        example = declared_example(pl_module)
        if example is not None:
            self._prepare(pl_module, example)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the schedule against the training, and put masks in force."""
        warn_if_cut_short(trainer, self.schedule)
        self._hold_masks(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prune where the schedule says so."""
        self._act(trainer, pl_module, 0)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the first batch for an example; prune between accumulation windows where the schedule says so."""
        if not self._prepared:
            late = [c for c in trainer.callbacks if isinstance(c, IterativePruning) and not c._prepared]  # type: ignore[attr-defined]
            for pruning in late:
                channels = isinstance(pruning.granularity, Channels)
                pruning._prepare(pl_module, example_from_batch(pl_module, batch, channels))
            for pruning in late if batch_idx == 0 else ():  # what they could not do when the epoch began
                pruning._act(trainer, pl_module, 0)
        if not window_is_open(trainer, batch_idx):
            self._act(trainer, pl_module, batch_idx)
            if trainer.should_stop and trainer.fit_loop._can_stop_early:
                raise StopIteration  # a listener ends the training: as Lightning does it, without this batch
        if self.pruner.statistics is not None:
            self.pruner.statistics.begin_step(batch_idx)
        pl_module.log("sparsity", self.sparsity, prog_bar=True, logger=False, on_step=True, on_epoch=False)

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """Get to know the network before another pruner changes it: shares refer to the original."""
        if not self._prepared and pruning.example is not None:
            self._prepare(pl_module, pruning.example)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What is measured from here on goes into the history."""
        self._history.begin_validation(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Whoever holds an event back may think otherwise now."""
        self._agenda.try_again()
        if not trainer.sanity_checking:
            self._history.end_validation(trainer)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the statistics take in one backward pass."""
        if self.pruner.statistics is not None:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self.pruner.statistics.commit(scaler.get_scale() if scaler is not None else 1.0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say if the first batches do not reach what has to be ranked, or train what the analysis has not seen."""
        if self._observed:
            return
        unseen = unseen_anywhere(trainer, self.pruner)
        if unseen is not None:
            warn_unfollowed(self.pruner, pl_module)
            check_gradients(self.pruner, pl_module, unseen, batch_idx + 1 >= _CERTAIN or trainer.is_last_batch)
            self._observed = not unseen

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take all hooks off the network and the optimizers; pruned shapes still go into later checkpoints."""
        self._masks.release()
        if self.pruner.statistics is not None:
            self.pruner.statistics.detach()

    def state_dict(self) -> dict[str, Any]:
        """How far pruning has gone; plain numbers, dicts and tensors."""
        return {
            "pruner": self.pruner.state_dict(),
            **self._agenda.state_dict(),
            "finished": self._finished,
            "observed": self._observed,
            "history": self._history.state_dict(),
        }

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Only rank 0 writes the file, and all ranks resume from it: the mean of their statistics adds up again."""
        if self._operating:
            raise RuntimeError(
                "no checkpoint is saved: the training was interrupted in the middle of a pruning event, which leaves "
                "the network half pruned. Resume from the last checkpoint before."
            )
        let_load_from_checkpoint(pl_module, checkpoint)
        if self.pruner.statistics is not None:
            totals = over_ranks(trainer, self.pruner.statistics.totals, "mean")
            checkpoint["callbacks"][self.state_key]["pruner"]["statistics"]["totals"] = totals

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.pruner.load_state_dict(state_dict["pruner"])
        self._agenda.load_state_dict(state_dict)
        self._finished, self._restored = state_dict["finished"], True
        self._observed = state_dict.get("observed", False)
        if "history" in state_dict:
            self._history.load_state_dict(state_dict["history"])

    def _prepare(self, pl_module: pl.LightningModule, example: Example | None) -> None:
        if self.pruner.fraction < 1 and not self._finished:  # else nothing is left to do, as in a second fit
            with as_misconfiguration():
                self.pruner.prepare(pl_module, example, self.schedule.events)
            check_groups(self.pruner, self._others(pl_module.trainer))
        self._example, self._prepared = example, True

    def _others(self, trainer: pl.Trainer) -> list[Pruner]:
        """The other pruners of the same kind."""
        pruning = [c for c in trainer.callbacks if isinstance(c, IterativePruning) and c is not self]  # type: ignore[attr-defined]
        return [other.pruner for other in pruning if type(other.pruner) is type(self.pruner)]

    def _act(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch_idx: int) -> None:
        now, epoch = time_of(trainer, self.schedule, batch_idx), trainer.current_epoch
        if not self._prepared or self._finished or not self._agenda.is_due(now, self.pruner.fraction, epoch):
            return
        self._paused = None
        tell(trainer, "on_before_prune", pl_module, self)
        if self._paused is not None:
            self._agenda.hold(now, epoch)
            return
        step = self._agenda.next(now, self.pruner.fraction)
        report = decide(trainer, pl_module, self.pruner, self._example, step)
        if isinstance(report, BudgetError):
            rank_zero_warn(f"{report} Pruning ends here, at sparsity {self.sparsity:.4f}.")
            self._finish()
        elif isinstance(report, ValueError):
            rank_zero_warn(f"The pruning event that is due has to wait: {report}")
            self._agenda.hold(now, epoch)
        else:
            self._agenda.take(now, step)
            self._carry_out(trainer, pl_module, report)

    def _carry_out(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: Report) -> None:
        if not report.removes:
            rank_zero_info(f"At epoch {trainer.current_epoch} there is nothing to remove yet: {report}")
            self.pruner.fraction = report.fraction
            return
        self._operating = True
        carry_out(trainer, pl_module, self.pruner, report)
        self._history.add(trainer, self.pruner.event, report)
        self._hold_masks(trainer, pl_module)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, IterativePruning):  # before listeners, who may save a checkpoint
                callback._follow(trainer, pl_module, report)
        self._operating = False
        rank_zero_info(f"Pruning event {self.pruner.event} at epoch {trainer.current_epoch}: {report}")
        forget_best(trainer)
        if report.fraction >= 1:
            self._finish()
        tell(trainer, "on_prune", pl_module, report.plan, report)

    def _follow(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: Report) -> None:
        """This pruner or another has changed the network."""
        self.pruner.resized(report.after)
        if report.plan.keep and isinstance(self.pruner, WeightPruner):
            self.pruner.follow(report.plan)
            self._hold_masks(trainer, pl_module)

    def _finish(self) -> None:
        """No event will follow; observing any longer would cost memory and time."""
        self._finished = True
        if self.pruner.statistics is not None:
            self.pruner.statistics.detach()

    def _hold_masks(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._masks.release()
        if isinstance(self.pruner, WeightPruner):
            self._masks = self.pruner.keeper(pl_module)
            self._masks.hold(trainer.strategy.optimizers)
