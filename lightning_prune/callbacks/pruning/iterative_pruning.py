"""The pruner as a callback: it decides when; rooms below decide what."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.budgets.budget import Budget
from lightning_prune.callbacks.loading import let_load_from_checkpoint, prepare_loading
from lightning_prune.callbacks.pruning.block_ablation import check_measurable
from lightning_prune.callbacks.pruning.checks import (
    check_dense,
    check_groups,
    check_regrowth,
    check_same_network,
    check_scopes,
    check_start,
)
from lightning_prune.callbacks.pruning.events import Events
from lightning_prune.callbacks.trainer.example_batch import declared_example, example_from_batch
from lightning_prune.callbacks.trainer.lightning_packages import Callback, MisconfigurationException, overrides
from lightning_prune.callbacks.trainer.listeners import as_misconfiguration
from lightning_prune.callbacks.trainer.strategies import check_optimizers, check_trainer
from lightning_prune.callbacks.trainer.training_time import warn_if_cut_short, warn_if_not_reached, window_is_open
from lightning_prune.checkpoint.manifest import is_pruned, removed_modules_in, track_shapes
from lightning_prune.criteria.criterion import Criterion
from lightning_prune.criteria.lookup import criterion_named
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
    """Make the network smaller, event by event, while it trains.

    Surgery happens where an epoch (or, for schedules in steps or shares, an accumulation window) begins, so no pruned
    network goes untrained and no checkpoint is filed under another network's metric; best-model tracking of
    ``ModelCheckpoint`` begins anew at every size. Other callbacks that have the methods are told:
    ``on_before_prune(trainer, pl_module, pruning)`` when an event is due, ``on_prune(trainer, pl_module, plan,
    report)`` after it.

    Args:
        schedule: When, and how far each time.
        budget: Until what; the schedule arrives there. ``NM`` takes none.
        criterion: What matters, an object or the name of one without arguments; ``Magnitude()`` by default.
        granularity: ``Channels()`` removes channels (the default), ``Weights()`` masks single weights,
            ``NM(2, 4)`` all but two of every four.
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
        self._events = Events(self.pruner, schedule, getattr(self.granularity, "regrow", None))
        self._example: Example | None = None
        self._prepared = self._restored = self._came_pruned = False
        self._removed_modules: list[str] = []  # what was removed as a whole when the network was looked at last

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
        self._events.held_back = reason

    def take_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, state: dict[str, Any]) -> None:
        """The network is again what it was when ``state`` was saved: so is the pruner, which goes on in smaller steps.

        The history keeps what was tried.
        """
        ended = self._events.finished
        self._events.take_back(trainer, pl_module, state)
        if ended and not self._events.finished and self._prepared:  # else there is nothing left to train
            self._prepare(pl_module, self._example)
        self._look_again(pl_module)

    def apply_masks(self) -> None:
        """Zero what is masked, whoever has changed it."""
        self._events.masks.apply()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Prepare loading of pruned checkpoints; refuse strategies that cannot work."""
        prepare_loading(pl_module)
        let_load_from_checkpoint(trainer, pl_module)
        if stage == "fit":
            check_trainer(trainer, self.granularity)
            check_regrowth(trainer, self.granularity)
            self._came_pruned = is_pruned(pl_module)
            self._example, self._prepared, self._restored = None, False, False
            self._events.begin_training()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check what the network alone can tell; it may have been built since ``setup``."""
        track_shapes(pl_module)
        check_optimizers(trainer, self.granularity)
        if self.pruner.event == 0 and not self._restored:
            check_dense(pl_module, self.state_key, self._came_pruned)
        elif not self._restored:
            check_same_network(self.pruner, pl_module)
        with as_misconfiguration():
            check_scopes(self.pruner, self._others(trainer), pl_module)
        example = declared_example(pl_module)
        if example is not None:
            self._prepare(pl_module, example)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the schedule against the training and what events will measure, and put masks in force."""
        warn_if_cut_short(trainer, self.schedule)
        self._events.hold_masks(trainer, pl_module)
        if self.pruner.fraction < 1 and not self._events.finished:
            check_measurable(trainer, pl_module, self.pruner.criterion)

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
                removes = isinstance(pruning.granularity, (Channels, Blocks))
                pruning._prepare(pl_module, example_from_batch(pl_module, batch, removes))
            for pruning in late if batch_idx == 0 else ():  # what they could not do when the epoch began
                pruning._act(trainer, pl_module, 0)
        if not window_is_open(trainer, batch_idx):
            self._act(trainer, pl_module, batch_idx)
            if trainer.should_stop and trainer.fit_loop._can_stop_early:
                raise StopIteration  # a listener ends the training: as Lightning does it, without this batch
        self._events.observing.begin_step(pl_module, batch_idx)
        pl_module.log("sparsity", self.sparsity, prog_bar=True, logger=False, on_step=True, on_epoch=False)

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """Get to know the network before another pruner changes it: shares refer to the original."""
        if not self._prepared and pruning.example is not None:
            self._prepare(pl_module, pruning.example)

    def follow_pruning(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: Report) -> None:
        """This pruner or another has changed the network."""
        self._events.follow(trainer, pl_module, report)
        self._look_again(pl_module)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Let the statistics differentiate the loss themselves."""
        self._events.observing.begin_backward(trainer, loss)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the statistics take in one backward pass."""
        self._events.observing.end_backward(trainer)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Let the statistics look at all gradients; those of masked weights then have no part in the norm to clip."""
        self._events.observing.begin_optimizer_step(trainer, optimizer)
        self._events.regrow(trainer, pl_module, optimizer)
        if trainer.gradient_clip_val or overrides(pl_module, "configure_gradient_clipping"):
            self._events.masks.mask_gradients(optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say if the first batches do not reach what has to be ranked."""
        self._events.observing.end_step()
        self._events.observing.check(trainer, pl_module, batch_idx + 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What is measured from here on goes into the history; masked weights have no part in it."""
        self._events.masks.apply()  # whoever has changed weights besides the optimizers
        self._events.history.begin_validation(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Whoever holds an event back may think otherwise now."""
        self._events.try_again()
        if not trainer.sanity_checking:
            self._events.history.end_validation(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing masked is saved, whoever has changed weights besides the optimizers."""
        self._events.masks.apply()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say so if the end came too early."""
        if not self._events.finished:
            warn_if_not_reached(trainer, self.schedule, self.pruner.fraction)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take all hooks off the network and the optimizers; pruned shapes still go into later checkpoints."""
        self._events.masks.release()
        self._events.observing.end()

    def state_dict(self) -> dict[str, Any]:
        """How far pruning has gone; plain numbers, dicts and tensors."""
        return self._events.state_dict()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """What is saved lets every rank resume."""
        if self._events.operating:
            raise RuntimeError(
                "no checkpoint is saved: the training was interrupted in the middle of a pruning event, which leaves "
                "the network half pruned. Resume from the last checkpoint before."
            )
        self._events.masks.apply()  # the state dict holds the same memory
        self._events.observing.fill_in(trainer, checkpoint["callbacks"][self.state_key]["pruner"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._events.load_state_dict(state_dict)
        self._restored = True

    def _prepare(self, pl_module: pl.LightningModule, example: Example | None) -> None:
        if self.pruner.fraction < 1 and not self._events.finished:  # else nothing is left to do, as in a second fit
            with as_misconfiguration():
                self.pruner.prepare(pl_module, example, self.schedule.events)
            self._events.observing.prepared(pl_module)
            check_groups(self.pruner, self._others(pl_module.trainer))
        self._example, self._prepared, self._removed_modules = example, True, removed_modules_in(pl_module)

    def _look_again(self, pl_module: pl.LightningModule) -> None:
        """Where whole modules have gone or come back, others have to be observed."""
        if not self._prepared or removed_modules_in(pl_module) == self._removed_modules:
            return
        try:
            self._prepare(pl_module, self._example)
        except MisconfigurationException as error:  # the next event, if it cannot be, says so and ends pruning
            rank_zero_warn(str(error))

    def _act(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch_idx: int) -> None:
        if self._prepared:
            self._events.act(trainer, pl_module, self._example, self, batch_idx)

    def _others(self, trainer: pl.Trainer) -> list[Pruner]:
        """The other pruners of the same kind."""
        pruning = [c for c in trainer.callbacks if isinstance(c, IterativePruning) and c is not self]  # type: ignore[attr-defined]
        return [other.pruner for other in pruning if type(other.pruner) is type(self.pruner)]
