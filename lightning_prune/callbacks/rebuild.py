"""The strategy's side of surgery: the DDP wrapper is dropped before it and built anew after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS

from lightning_prune.granularity import Channels, Granularity

_AVERAGING = ("WeightAveraging", "StochasticWeightAveraging")
_SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def check_trainer(trainer: pl.Trainer, granularity: Granularity) -> None:
    """Refuse strategies under which a network cannot change its shapes, and callbacks that keep a second copy of it.

    Raises:
        MisconfigurationException: Names the strategy or the callback, and what to use instead.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if {cls.__name__ for cls in type(callback).__mro__} & set(_AVERAGING):
            raise MisconfigurationException(
                f"{type(callback).__name__} keeps an averaged copy of the network, which does not follow pruning yet; "
                "remove it, or average in a training after the pruning"
            )
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


def check_optimizers(trainer: pl.Trainer, granularity: Granularity) -> None:
    """Refuse optimizers whose state cannot be sliced.

    Raises:
        MisconfigurationException: Names the optimizer and what to use instead.
    """
    if isinstance(granularity, Channels) and any(isinstance(o, LBFGS) for o in trainer.strategy.optimizers):
        raise MisconfigurationException(
            "LBFGS keeps one flat history of all parameters, which channels cannot be cut from; use another optimizer, "
            "or Weights()"
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
