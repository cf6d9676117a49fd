"""One thread, as tiny networks run faster so; a fixed seed; what a test saves as a figure."""

import logging
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

import lightning_prune.callbacks  # noqa: F401  (before a test imports both of Lightning's packages)

torch.set_num_threads(1)
LEVELS = {
    logging.getLogger(n): logging.getLogger(n).level
    for n in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _listening() -> None:
    """Benchmarks are scripts and make Lightning quiet for good; tests after them listen to it."""
    logging.disable(logging.NOTSET)
    for logger, level in LEVELS.items():
        logger.setLevel(level)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures of matplotlib that a test saves."""
    found: list[Figure] = []
    save = Figure.savefig

    def noted(figure: Figure, *args: Any, **kwargs: Any) -> None:
        found.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", noted)
    return found
