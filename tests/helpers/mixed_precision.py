"""Trainer options for half precision on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision

SCALE = 2.0**10


OVERFLOWS = 2.0**40  # far above what half precision holds


def scaled(init_scale: float = SCALE, **options: Any) -> dict[str, Any]:
    """Trainer options for half precision on the CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, **options)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}
