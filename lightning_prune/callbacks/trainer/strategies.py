"""Which strategies and optimizers pruning supports, and the DDP wrapper around the network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS

from lightning_prune.callbacks.trainer.lightning_packages import DDP_STRATEGIES, MisconfigurationException
from lightning_prune.granularity import Blocks, Channels, Granularity

_FLAT = ("FSDPStrategy", "DeepSpeedStrategy")  # they keep parameters in one flat tensor, or copies of them elsewhere


_SHARDED = (*_FLAT, "ModelParallelStrategy")


def check_trainer(trainer: pl.Trainer, granularity: Granularity) -> None:
    """Refuse strategies under which a network cannot change its shapes, or its weights cannot be masked.

    Raises:
        MisconfigurationException: Names the strategy, and what to use instead.
    """
    names = {cls.__name__ for cls in type(trainer.strategy).__mro__}
    if isinstance(granularity, (Channels, Blocks)) and is_sharding(trainer):
        raise MisconfigurationException(
            f"{type(granularity).__name__}() cannot change shapes under {type(trainer.strategy).__name__}, which "
            "shards the parameters; use strategy='ddp', or Weights() with ModelParallelStrategy"
        )
    if names & set(_FLAT):
        raise MisconfigurationException(
            f"{type(trainer.strategy).__name__} trains other tensors than the parameters that Weights() would mask; "
            "use ModelParallelStrategy (FSDP2), or strategy='ddp'"
        )
    method = getattr(trainer.strategy, "_start_method", "popen")
    if method != "popen":
        raise MisconfigurationException(
            f"IterativePruning cannot bring pruned shapes back from processes started by {method!r} "
            f"({type(trainer.strategy).__name__}); use strategy='ddp'"
        )


def is_sharding(trainer: pl.Trainer) -> bool:
    """Whether the strategy gives every rank a part of the parameters."""
    return bool({cls.__name__ for cls in type(trainer.strategy).__mro__} & set(_SHARDED))


def check_whole(trainer: pl.Trainer, callback: object) -> None:
    """Refuse a callback that looks at whole parameters where every rank holds a part.

    Raises:
        MisconfigurationException: Names the callback and the strategy.
    """
    if is_sharding(trainer):
        raise MisconfigurationException(
            f"{type(callback).__name__} looks at whole parameters, of which {type(trainer.strategy).__name__} gives "
            "every rank a part; remove it, or use strategy='ddp'"
        )


def check_optimizers(trainer: pl.Trainer, granularity: Granularity) -> None:
    """Refuse optimizers whose state cannot be sliced.

    Raises:
        MisconfigurationException: Names the optimizer and what to use instead.
    """
    if isinstance(granularity, (Channels, Blocks)) and any(isinstance(o, LBFGS) for o in trainer.strategy.optimizers):
        raise MisconfigurationException(
            f"LBFGS keeps one flat history of all parameters, which {type(granularity).__name__.lower()} cannot be cut "
            "from; use another optimizer, or Weights()"
        )


@contextmanager
def unwrapped(trainer: pl.Trainer) -> Iterator[None]:
    """Take the network out of its DDP wrapper, and wrap it again at the end."""
    strategy = trainer.strategy
    if not isinstance(strategy, DDP_STRATEGIES) or not isinstance(strategy.model, DistributedDataParallel):
        yield
        return
    for optimizer in strategy.optimizers:
        optimizer.zero_grad(set_to_none=True)  # gradients may be views into the buckets of the wrapper
    strategy.model = strategy.lightning_module
    yield
    strategy.configure_ddp()
    strategy._pl_static_graph_delay_done = False


def forget_compiled() -> None:
    """Let what ``torch.compile`` has made be compiled anew: after eight changes of shapes it would run eagerly."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
