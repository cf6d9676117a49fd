"""Training data without a length."""

import warnings
from collections.abc import Iterator
from typing import Any

from helpers.training import STEPS, Lit, fit, images
from torch.utils.data import DataLoader, IterableDataset

from lightning_prune import IterativePruning
from lightning_prune.budgets import Ratio
from lightning_prune.schedules import Linear, Rounds, Schedule


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(images())


class Unsized(Lit):
    def train_dataloader(self) -> Any:
        return DataLoader(Stream(), batch_size=len(images()) // STEPS)


def run(tmp_path, schedule: Schedule, lit: Lit | None = None, **options: Any) -> tuple[float, list[str]]:
    """Final fraction, and the warnings about the schedule."""
    pruning = IterativePruning(schedule, Ratio(0.5), "magnitude")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, lit or Unsized(), pruning, **options)
    said = [str(w.message) for w in caught]
    return pruning.pruner.fraction, [m for m in said if "no length" in m or "has ended" in m or "training ends" in m]


SHARES = Linear(0.1, 0.8, 0.1, unit="share")


def test_shares_advance_at_the_end_of_epochs(tmp_path) -> None:
    fraction, (start, end) = run(tmp_path, SHARES, max_epochs=4)
    assert 0.8 < fraction < 1
    assert start.startswith(f"{SHARES} is in shares of the training, but the training data have no length: ")
    assert f"ended after 4 epochs and {4 * STEPS} steps, before the last event of" in end
    assert "at 85.7% of the way to the budget" in end


def test_shares_of_steps_are_known(tmp_path) -> None:
    assert run(tmp_path, SHARES, max_epochs=-1, max_steps=4 * STEPS) == (1.0, [])
    assert run(tmp_path, SHARES, max_epochs=2, limit_train_batches=STEPS) == (1.0, [])


def test_schedule_beyond_the_training(tmp_path) -> None:
    fraction, (said,) = run(tmp_path, Rounds(3, 1, 2), max_epochs=-1, max_steps=2 * STEPS)
    assert fraction == 0
    assert "at 0.0% of the way to the budget. End the schedule earlier, use unit='step', or train longer." in said


def test_schedule_within_the_training(tmp_path) -> None:
    assert run(tmp_path, Rounds(1, 1, 2), max_epochs=-1, max_steps=4 * STEPS) == (1.0, [])


def test_with_a_length_there_is_one_warning_at_the_start(tmp_path) -> None:
    fraction, (said,) = run(tmp_path, Rounds(1, 1, 3), Lit(), max_epochs=2)
    assert fraction < 1
    assert "the training ends at" in said
