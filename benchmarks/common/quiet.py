"""Benchmarks print tables and progress, not what Lightning says of every Trainer."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """From here on no warnings, and of Lightning only errors."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.fabric", "lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
