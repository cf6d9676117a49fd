"""A small network for masks that are learned."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import callbacks as lightning_callbacks

from helpers.training import Lit

WeightAveraging: Any = getattr(lightning_callbacks, "WeightAveraging", None)


def model(**options: Any) -> Lit:
    torch.manual_seed(0)
    return Lit(norm=False, **options)
