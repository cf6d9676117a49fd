"""Strategies and optimizers that support pruning, and the DDP wrapper around the network."""

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

_FLAT = ("FSDPStrategy", "DeepSpeedStrategy")  # these train one flat tensor, or copies of the parameters
_SHARDED = (*_FLAT, "ModelParallelStrategy")


def check_trainer(trainer: pl.Trainer, granularity: Granularity) -> None:
    """Reject strategies that do not support changing shapes, or masking weights.

    Raises:
        MisconfigurationException: Names the strategy, and the alternatives.
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
            f"IterativePruning cannot return pruned shapes from processes started by {method!r} "
            f"({type(trainer.strategy).__name__}); use strategy='ddp'"
        )


def is_sharding(trainer: pl.Trainer) -> bool:
    """Whether the strategy shards the parameters over ranks."""
    return bool({cls.__name__ for cls in type(trainer.strategy).__mro__} & set(_SHARDED))


def check_whole(trainer: pl.Trainer, callback: object) -> None:
    """Reject a callback that needs whole parameters if the strategy shards them.

    Raises:
        MisconfigurationException: Names the callback and the strategy.
    """
    if is_sharding(trainer):
        raise MisconfigurationException(
            f"{type(callback).__name__} needs whole parameters, but {type(trainer.strategy).__name__} shards them over "
            "ranks; remove the callback, or use strategy='ddp'"
        )


def check_optimizers(trainer: pl.Trainer, granularity: Granularity) -> None:
    """Reject optimizers whose state cannot be sliced.

    Raises:
        MisconfigurationException: Names the optimizer, and the alternatives.
    """
    if isinstance(granularity, (Channels, Blocks)) and any(isinstance(o, LBFGS) for o in trainer.strategy.optimizers):
        raise MisconfigurationException(
            "LBFGS keeps one flat history of all parameters, from which "
            f"{type(granularity).__name__.lower()} cannot be removed; use another optimizer, or Weights()"
        )


@contextmanager
def unwrapped(trainer: pl.Trainer) -> Iterator[None]:
    """Remove the DDP wrapper of the network, and wrap it again at the end."""
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


def reset_compiled() -> None:
    """Discard compiled code: after eight changes of shapes ``torch.compile`` would fall back to eager mode."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
