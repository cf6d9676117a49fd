"""Compatibility with both Lightning packages, ``lightning.pytorch`` and ``pytorch_lightning``.

They have the same code, but distinct classes. Our callbacks inherit from both, so that either Trainer and CLI accepts
them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lightning_utilities.core import rank_zero
from lightning_utilities.core.overrides import is_overridden

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import BaseFinetuning, ModelCheckpoint
    from lightning.pytorch.loggers import TensorBoardLogger
    from lightning.pytorch.strategies import DDPStrategy

_PACKAGES = [name for name in ("lightning.pytorch", "pytorch_lightning") if find_spec(name.partition(".")[0])]
_PACKAGES.sort(key=lambda name: name not in sys.modules)  # the package in use first

import_module(_PACKAGES[0])
_log = rank_zero.log  # both packages log to the logger of the one that was imported last
for _package in _PACKAGES[1:]:
    import_module(_package)
rank_zero.log = _log


def _in_both(module: str, name: str) -> tuple[type[Any], ...]:
    return tuple(getattr(import_module(f"{package}.{module}"), name) for package in _PACKAGES)


MODEL_CHECKPOINTS: tuple[type[ModelCheckpoint], ...] = _in_both("callbacks", "ModelCheckpoint")
FINETUNINGS: tuple[type[BaseFinetuning], ...] = _in_both("callbacks", "BaseFinetuning")
TENSORBOARD_LOGGERS: tuple[type[TensorBoardLogger], ...] = _in_both("loggers", "TensorBoardLogger")
DDP_STRATEGIES: tuple[type[DDPStrategy], ...] = _in_both("strategies", "DDPStrategy")

_PARENTS = _in_both("core", "LightningModule") + _in_both("core", "LightningDataModule")


def overrides(user: Any, method: str) -> bool:
    """Whether a user's module or data module overrides ``method`` of Lightning's class."""
    parent = next((cls for cls in type(user).__mro__ if cls in _PARENTS), None)
    return parent is not None and is_overridden(method, user, parent)


if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback as Callback
    from lightning.pytorch.utilities.exceptions import MisconfigurationException as MisconfigurationException
else:

    class Callback(*_in_both("callbacks", "Callback")):
        """Callback of both packages."""

    class MisconfigurationException(*_in_both("utilities.exceptions", "MisconfigurationException")):
        """Error of both packages for an invalid configuration."""
