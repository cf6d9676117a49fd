"""Make neural networks smaller while PyTorch Lightning trains them.

The callbacks need ``lightning``; everything else works without it. Names are imported when they are first used, so that
``import lightning_prune`` costs nothing and the command line imports only what a subcommand needs.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_prune.old_paths import keep_old_paths

if TYPE_CHECKING:
    from lightning_prune.callbacks import AccuracyGuard, IterativePruning, SlimmingPenalty, SparsityLogger
    from lightning_prune.checkpoint.loading import load_pruned
    from lightning_prune.functional import prune_once
    from lightning_prune.granularity import NM, Blocks, Channels, Weights
    from lightning_prune.masks.regrowth import Regrowth
    from lightning_prune.scope import Scope
    from lightning_prune.surgery.plan import Plan
    from lightning_prune.surgery.report import Report

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

_CALLBACKS = ("AccuracyGuard", "IterativePruning", "SlimmingPenalty", "SparsityLogger")
_MODULES = {  # exported name -> module that defines it
    "NM": "granularity",
    "Blocks": "granularity",
    "Channels": "granularity",
    "Plan": "surgery.plan",
    "Regrowth": "masks.regrowth",
    "Report": "surgery.report",
    "Scope": "scope",
    "Weights": "granularity",
    "load_pruned": "checkpoint.loading",
    "prune_once": "functional",
    **dict.fromkeys(_CALLBACKS, "callbacks"),
}
_PACKAGES = ("budgets", "callbacks", "criteria", "distilling", "functional", "granularity", "schedules", "tasks")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:  # lightning_prune.criteria.Taylor, without a second import statement
        return import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_MODULES[name]}")
    except ImportError as error:
        if name not in _CALLBACKS:
            raise
        raise ImportError(f"{name} is a Lightning callback: pip install lightning") from error
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})


if any(f"{package}.core.saving" in sys.modules for package in ("lightning.pytorch", "pytorch_lightning")):
    from lightning_prune.checkpoint.loading import trust_builders

    trust_builders()
