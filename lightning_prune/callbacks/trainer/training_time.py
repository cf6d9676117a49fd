"""Time of a training in the unit of a schedule, and its end."""

from __future__ import annotations

import math

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.callbacks.trainer.lightning_packages import MisconfigurationException
from lightning_prune.schedules.schedule import Schedule


def time_of(trainer: pl.Trainer, schedule: Schedule, batch_idx: int = 0) -> float:
    """Epochs, optimizer steps or share of the training completed, in the unit of ``schedule``."""
    if schedule.unit == "epoch":
        return trainer.current_epoch
    if schedule.unit == "step":
        return trainer.global_step
    return _share(trainer, batch_idx)


def share_done(trainer: pl.Trainer) -> float:
    """Completed share of the training, in [0, 1], when an optimizer is about to step."""
    return _share(trainer, trainer.fit_loop.epoch_loop.batch_idx)


def _share(trainer: pl.Trainer, batch_idx: int) -> float:
    epochs = trainer.current_epoch + batch_idx / trainer.num_training_batches
    return max(epochs / _limit(trainer.max_epochs), trainer.global_step / _limit(trainer.max_steps))


def end_of(trainer: pl.Trainer, schedule: Schedule) -> float:
    """End of the training in the unit of ``schedule``; infinity if its length is not limited.

    Raises:
        MisconfigurationException: If the schedule is in shares of a training of unlimited length.
    """
    epochs, steps = _limit(trainer.max_epochs), _limit(trainer.max_steps)
    per_epoch = _steps_per_epoch(trainer)
    if schedule.unit == "share":
        if math.isinf(epochs) and math.isinf(steps):
            raise MisconfigurationException(
                f"{schedule} is in shares of the training, whose length is not limited: set max_epochs or max_steps on "
                "the Trainer"
            )
        return 1.0
    if schedule.unit == "step":
        return min(steps, epochs * per_epoch)
    return min(epochs, steps / per_epoch if math.isfinite(per_epoch) else math.inf)


def warn_if_cut_short(trainer: pl.Trainer, schedule: Schedule) -> None:
    """Warn if the training ends before ``schedule``, except under ``fast_dev_run``."""
    end = end_of(trainer, schedule)
    if schedule.last >= end and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        rank_zero_warn(
            f"{schedule} has its last event at {schedule.unit} {schedule.last:g}, but the training ends at {end:g}: "
            "the budget will not be reached. End the schedule earlier, or train longer."
        )
    elif (
        schedule.unit == "share" and math.isinf(trainer.num_training_batches) and _limit(trainer.max_steps) == math.inf
    ):
        rank_zero_warn(
            f"{schedule} is in shares of the training, but the training data have no length: time advances only at the "
            "end of an epoch. Set max_steps or limit_train_batches on the Trainer, or use unit='step'."
        )


def warn_if_not_reached(trainer: pl.Trainer, schedule: Schedule, fraction: float) -> None:
    """Warn if a training whose length was not known in advance has ended before ``schedule``."""
    if fraction < 1 and math.isinf(trainer.num_training_batches) and not trainer.should_stop:
        rank_zero_warn(
            f"the training has ended after {trainer.current_epoch} epochs and {trainer.global_step} steps, before the "
            f"last event of {schedule}, at {fraction:.1%} of the way to the budget. End the schedule earlier, use "
            "unit='step', or train longer."
        )


def _steps_per_epoch(trainer: pl.Trainer) -> float:
    """Optimizer steps in an epoch; infinity if unknown."""
    batches = trainer.num_training_batches
    if not math.isfinite(batches) or not trainer.lightning_module.automatic_optimization:
        return math.inf
    return math.ceil(batches / trainer.accumulate_grad_batches)


def _limit(limit: int | None) -> float:
    return math.inf if limit is None or limit < 0 else limit


def window_is_open(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether an accumulation window has begun whose optimizer step is still to come."""
    return batch_idx % trainer.accumulate_grad_batches != 0
