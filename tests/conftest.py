"""Puts ``helpers`` on the path of every test; one thread, as tiny networks run faster so; a fixed seed."""

import logging

import pytest
import torch

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
