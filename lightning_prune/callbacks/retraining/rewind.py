"""``Rewind``: weight and learning rate rewinding after each pruning event."""

from __future__ import annotations

from typing import Any, Literal, get_args

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning
from lightning_prune.callbacks.pruning.pruning_callbacks import check_pruning, pruning_callbacks
from lightning_prune.callbacks.retraining.learning_rates import restore_rates, stored_rates
from lightning_prune.callbacks.trainer.lightning_packages import Callback, MisconfigurationException
from lightning_prune.callbacks.trainer.listeners import as_misconfiguration
from lightning_prune.callbacks.trainer.strategies import check_whole
from lightning_prune.checkpoint.stored_weights import StoredWeights, reinitialize
from lightning_prune.network.argument_checks import check_choice
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report

What = Literal["weights", "lr", "both"]


class Rewind(Callback):
    """Rewinds weights, learning rates, or both to an earlier point of the training after each pruning event.

    Lottery tickets (Frankle & Carbin 2019, 'The lottery ticket hypothesis') are rewound to the initial weights,
    ``to="init"``; weight rewinding (Frankle et al. 2020, 'Linear mode connectivity and the lottery ticket hypothesis')
    returns to those of an early epoch or step; both with the learning rates of that point: ``what="both"``. Learning
    rate rewinding (Renda et al. 2020, 'Comparing rewinding and fine-tuning in neural network pruning') keeps the
    trained weights: ``what="lr"``. ``to="random"`` draws new weights, the control experiment for the value of the old
    ones.

    When weights are rewound, masks are kept, buffers such as batch-norm statistics are rewound as well, and optimizer
    state is reset. The stored weights are pruned with the network, and are part of every checkpoint. Learning rate
    schedulers continue from the stored point; epochs and data are not rewound, nor are averaged copies.

    Args:
        to: Point that is rewound to. ``"init"``: the beginning of the training. ``"random"``: new weights, with the
            learning rates of the beginning. An integer of at least 0: the epoch or step, before the first event.
        unit: Unit of an integer ``to``: ``"epoch"``, or ``"step"`` (optimizer steps).
        what: What is rewound: ``"weights"``, ``"lr"`` (learning rates) or ``"both"``.

    Raises:
        MisconfigurationException: If an argument is out of range, the Trainer has no ``IterativePruning``, an event
            takes place before the point that is rewound to, or the strategy shards parameters.
    """

    def __init__(
        self,
        to: Literal["init", "random"] | int = "init",
        unit: Literal["epoch", "step"] = "epoch",
        what: What = "both",
    ) -> None:
        if to not in ("init", "random") and (isinstance(to, bool) or not isinstance(to, int) or to < 0):
            raise MisconfigurationException(
                f"Rewind to={to!r} is not known; use 'init', 'random', or the number of an epoch or step, 0 or more"
            )
        with as_misconfiguration():
            check_choice(self, "unit", unit, ("epoch", "step"))
            check_choice(self, "what", what, get_args(What))
        if to == "random" and what == "lr":
            raise MisconfigurationException("Rewind to='random' draws new weights, but what='lr' keeps them")
        self.to, self.unit, self.what = to, unit, what
        self._weights: StoredWeights | None = None
        self._rates: list[Any] | None = None  # None before the point that is rewound to
        self._events = 0

    @property
    def state_key(self) -> str:
        """Key in checkpoints: one for each point."""
        return self._generate_state_key(to=self.to, unit=self.unit, what=self.what)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Discard the stored point of an earlier training."""
        check_whole(trainer, self)
        if stage == "fit" and trainer.global_step == 0:  # otherwise the same Trainer continues
            self._weights, self._rates, self._events = None, None, 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the Trainer prunes."""
        check_pruning(trainer, self)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store the point if it is the beginning; check that a resumed training has stored it."""
        point = self.to if isinstance(self.to, int) else 0
        if self._rates is None and self._now(trainer) > point:
            raise MisconfigurationException(
                f"Rewind to={self.to!r} rewinds to {self.unit} {point}, but this training is resumed from {self.unit} "
                f"{self._now(trainer)} of a training without Rewind; train from the beginning, or rewind to a later "
                "epoch or step"
            )
        self._store_if_due(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Store the point if it is now."""
        self._store_if_due(trainer, pl_module)

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """Check that the point is before the first event."""
        self._store_if_due(trainer, pl_module)
        if self._rates is None:
            raise MisconfigurationException(
                f"Rewind to={self.to} ({self.unit}) is after the first event, at epoch {trainer.current_epoch} and "
                f"step {trainer.global_step}: rewind to an earlier point, or let {pruning.schedule} start later"
            )

    def on_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan, report: Report) -> None:
        """Rewind."""
        self._events += 1
        if self._weights is not None:
            self._weights.follow(plan)
            self._weights.put_back(pl_module)
        elif self.to == "random":
            unchanged = reinitialize(pl_module, self._events)
            if unchanged:
                rank_zero_warn(
                    f"Rewind to='random' does not change {unchanged[0]!r} (and {len(unchanged) - 1} more): its module "
                    "has no reset_parameters"
                )
        if self.what != "lr":
            for pruning in pruning_callbacks(trainer):
                pruning.apply_masks()
            for optimizer in trainer.strategy.optimizers:
                optimizer.state.clear()
        if self.what != "weights" and self._rates is not None:
            restore_rates(trainer, self._rates)

    def roll_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, state: dict[str, Any]) -> None:
        """Return to ``state``, in which the stored weights have the shapes of the restored network."""
        self.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Stored point as plain numbers, dicts and tensors."""
        weights = None if self._weights is None else self._weights.tensors
        return {"weights": weights, "rates": self._rates, "events": self._events}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        weights = state_dict["weights"]
        self._weights = None if weights is None else StoredWeights(weights)
        self._rates, self._events = state_dict["rates"], state_dict["events"]

    def _now(self, trainer: pl.Trainer) -> int:
        return trainer.current_epoch if self.unit == "epoch" else trainer.global_step

    def _store_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._rates is not None or (isinstance(self.to, int) and self._now(trainer) < self.to):
            return
        self._rates = stored_rates(trainer)
        if self.what != "lr" and self.to != "random":
            self._weights = StoredWeights.of(pl_module)
