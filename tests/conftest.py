"""Puts ``helpers`` on the path of every test; one thread, as tiny networks run faster so; a fixed seed."""

import pytest
import torch

import lightning_prune.callbacks  # noqa: F401  (before a test imports both of Lightning's packages)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
