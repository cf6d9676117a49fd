"""The strategy's side of surgery: the DDP wrapper is dropped before it and built anew after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn.parallel import DistributedDataParallel

from lightning_prune.granularity import Channels, Granularity

_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def check_strategy(trainer: pl.Trainer, granularity: Granularity) -> None:
    """Refuse the strategies under which a network cannot change its shapes.

    Raises:
        MisconfigurationException: Names the strategy and what to use instead.
    """
    names = {cls.__name__ for cls in type(trainer.strategy).__mro__}
    if isinstance(granularity, Channels) and names & set(_SHARDED):
        raise MisconfigurationException(
            f"Channels() cannot change shapes under {type(trainer.strategy).__name__}, which shards the parameters; "
            "use strategy='ddp', or Weights()"
        )
    method = getattr(trainer.strategy, "_start_method", "popen")
    if method != "popen":
        raise MisconfigurationException(
            f"IterativePruning cannot bring pruned shapes back from processes started by {method!r} "
            f"({type(trainer.strategy).__name__}); use strategy='ddp'"
        )


@contextmanager
def unwrapped(trainer: pl.Trainer) -> Iterator[None]:
    """Take the network out of its DDP wrapper, and wrap it again at the end."""
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy) or not isinstance(strategy.model, DistributedDataParallel):
        yield
        return
    for optimizer in strategy.optimizers:
        optimizer.zero_grad(set_to_none=True)  # gradients may be views into the buckets of the wrapper
    strategy.model = strategy.lightning_module
    yield
    strategy.configure_ddp()
    strategy._pl_static_graph_delay_done = False
