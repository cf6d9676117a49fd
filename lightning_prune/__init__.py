"""Make neural networks smaller while PyTorch Lightning trains them.

The callbacks need ``lightning``; everything else works without it.
"""

from typing import TYPE_CHECKING, Any

from lightning_prune.checkpoint.loading import load_pruned, trust_builders
from lightning_prune.functional import prune_once
from lightning_prune.granularity import NM, Blocks, Channels, Weights
from lightning_prune.masks.regrowth import Regrowth
from lightning_prune.old_paths import keep_old_paths
from lightning_prune.scope import Scope
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report

if TYPE_CHECKING:
    from lightning_prune.callbacks import AccuracyGuard, IterativePruning, SlimmingPenalty, SparsityLogger

__version__ = "0.1.0"
__all__ = [
    "NM",
    "AccuracyGuard",
    "Blocks",
    "Channels",
    "IterativePruning",
    "Plan",
    "Regrowth",
    "Report",
    "Scope",
    "SlimmingPenalty",
    "SparsityLogger",
    "Weights",
    "load_pruned",
    "prune_once",
]

keep_old_paths()
trust_builders()

_CALLBACKS = ("AccuracyGuard", "IterativePruning", "SlimmingPenalty", "SparsityLogger")


def __getattr__(name: str) -> Any:
    if name not in _CALLBACKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from lightning_prune import callbacks
    except ImportError as error:
        raise ImportError(f"{name} is a Lightning callback: pip install lightning") from error
    return getattr(callbacks, name)
