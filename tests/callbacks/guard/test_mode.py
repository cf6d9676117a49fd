"""Metrics that are called like losses."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from helpers.training import Lit, fit

from lightning_prune import AccuracyGuard, IterativePruning
from lightning_prune.budgets import Ratio
from lightning_prune.schedules import Constant


class Both(Lit):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("val_acc", 0.5)


@pytest.mark.parametrize(
    ("monitor", "mode", "said"), [("val_loss", "max", 1), ("val_loss", "min", 0), ("val_acc", "max", 0)]
)
def test_a_loss_that_should_be_high_is_doubted(tmp_path: Path, monitor: str, mode: Any, said: int) -> None:
    guard = AccuracyGuard(monitor, 100.0, mode)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, Both(), IterativePruning(Constant(1), Ratio(0.5)), guard, max_epochs=2)
    doubts = [str(warning.message) for warning in caught if "higher is better" in str(warning.message)]
    assert len(doubts) == said
