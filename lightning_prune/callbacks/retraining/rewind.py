"""Rewinding: after an event, training goes on from an earlier point."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning
from lightning_prune.callbacks.pruning.pruning_callbacks import check_pruning, pruning_callbacks
from lightning_prune.callbacks.retraining.learning_rates import put_back_rates, rates_of
from lightning_prune.callbacks.trainer.lightning_packages import Callback, MisconfigurationException
from lightning_prune.callbacks.trainer.strategies import check_whole
from lightning_prune.checkpoint.stored_weights import StoredWeights, reinitialize
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report

What = Literal["weights", "lr", "both"]


class Rewind(Callback):
    """After every pruning event weights, learning rates, or both go back to what they were.

    Lottery tickets (Frankle & Carbin 2019, 'The lottery ticket hypothesis') go back to the initial weights,
    ``to="init"``; weight rewinding (Frankle et al. 2020, 'Linear mode connectivity and the lottery ticket hypothesis')
    to those of an early epoch or step, both with the learning rates of then: ``what="both"``. Learning rate rewinding
    (Renda et al. 2020, 'Comparing rewinding and fine-tuning in neural network pruning') keeps the trained weights:
    ``what="lr"``. ``to="random"`` draws new weights, the control that tells whether the old ones matter.

    Where weights go back, what is masked stays masked, buffers such as batch-norm statistics go back with them, and
    optimizers begin anew. The stored weights are cut with the network, and are in every checkpoint. Learning rates go
    on from the stored point as their schedulers have them; epochs and data go on as they are. Averaged copies stay.

    Args:
        to: ``"init"``: the beginning of the training. ``"random"``: new weights, with the learning rates of the
            beginning. A number: the epoch or step, 0 or more, before the first event.
        unit: What ``to`` counts: ``"epoch"``, or ``"step"`` (optimizer steps).
        what: What goes back.

    Raises:
        MisconfigurationException: If an argument is out of range, no pruning is there, an event comes before the point
            that is rewound to, or the strategy shards parameters.
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
        for name, value, choices in (("unit", unit, ("epoch", "step")), ("what", what, ("weights", "lr", "both"))):
            if value not in choices:
                raise MisconfigurationException(
                    f"Rewind {name}={value!r} is not known; use {' or '.join(map(repr, choices))}"
                )
        if to == "random" and what == "lr":
            raise MisconfigurationException("Rewind to='random' draws new weights, but what='lr' keeps them")
        self.to, self.unit, self.what = to, unit, what
        self._weights: StoredWeights | None = None
        self._rates: list[Any] | None = None  # None until the point to go back to has come
        self._events = 0

    @property
    def state_key(self) -> str:
        """One key for each point."""
        return self._generate_state_key(to=self.to, unit=self.unit, what=self.what)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A new training begins; a checkpoint brings its point back."""
        check_whole(trainer, self)
        if stage == "fit" and trainer.global_step == 0:  # else the same Trainer goes on
            self._weights, self._rates, self._events = None, None, 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There must be events to rewind after."""
        check_pruning(trainer, self)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The point may be the beginning; a resumed training is past it."""
        point = self.to if isinstance(self.to, int) else 0
        if self._rates is None and self._now(trainer) > point:
            raise MisconfigurationException(
                f"Rewind to={self.to!r} goes back to {self.unit} {point}, but this training is resumed from "
                f"{self.unit} {self._now(trainer)} of one without it; begin anew, or rewind to a later epoch or step"
            )
        self._store_if_due(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The point may be now."""
        self._store_if_due(trainer, pl_module)

    def on_before_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruning: IterativePruning) -> None:
        """The point must have come before the first event."""
        self._store_if_due(trainer, pl_module)
        if self._rates is None:
            raise MisconfigurationException(
                f"Rewind to={self.to} ({self.unit}) lies after the first event, at epoch {trainer.current_epoch} and "
                f"step {trainer.global_step}: rewind to an earlier point, or let {pruning.schedule} start later"
            )

    def on_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan, report: Report) -> None:
        """Go back."""
        self._events += 1
        if self._weights is not None:
            self._weights.follow(plan)
            self._weights.put_back(pl_module)
        elif self.to == "random":
            stay = reinitialize(pl_module, self._events)
            if stay:
                rank_zero_warn(f"Rewind to='random' leaves {stay[0]!r} (and {len(stay) - 1} more) as it is: its module "
                               "has no reset_parameters")  # fmt: skip
        if self.what != "lr":
            for pruning in pruning_callbacks(trainer):
                pruning.apply_masks()
            for optimizer in trainer.strategy.optimizers:
                optimizer.state.clear()
        if self.what != "weights" and self._rates is not None:
            put_back_rates(trainer, self._rates)

    def roll_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, state: dict[str, Any]) -> None:
        """The network is again what it was when ``state`` was saved: so are the shapes of the stored weights."""
        self.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """The stored point; plain numbers, dicts and tensors."""
        weights = None if self._weights is None else self._weights.tensors
        return {"weights": weights, "rates": self._rates, "events": self._events}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        weights = state_dict["weights"]
        self._weights = None if weights is None else StoredWeights(weights)
        self._rates, self._events = state_dict["rates"], state_dict["events"]

    def _now(self, trainer: pl.Trainer) -> int:
        return trainer.current_epoch if self.unit == "epoch" else trainer.global_step

    def _store_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._rates is not None or (isinstance(self.to, int) and self._now(trainer) < self.to):
            return
        self._rates = rates_of(trainer)
        if self.what != "lr" and self.to != "random":
            self._weights = StoredWeights.of(pl_module)
