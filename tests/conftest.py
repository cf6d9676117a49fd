"""Puts ``helpers`` on the path of every test; one thread, as tiny networks run faster so; a fixed seed."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
