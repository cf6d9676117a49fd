"""Checks of `IterativePruning`: errors and warnings about its arguments, the network and the Trainer."""

from __future__ import annotations

from collections.abc import Iterable

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.callbacks.trainer.lightning_packages import FINETUNINGS, MisconfigurationException
from lightning_prune.callbacks.trainer.strategies import is_sharding
from lightning_prune.checkpoint.manifest import is_pruned, params_as_built
from lightning_prune.granularity import Granularity, Weights
from lightning_prune.network.sharded import is_sharded
from lightning_prune.pruners.block_pruner import BlockPruner
from lightning_prune.pruners.channel_pruner import ChannelPruner
from lightning_prune.pruners.mask_pruner import MaskPruner
from lightning_prune.pruners.pruner import Pruner
from lightning_prune.schedules.schedule import Schedule


def check_start(pruner: Pruner, schedule: Schedule) -> None:
    """Check that a criterion that needs gradients has a training step before the first event."""
    if pruner.statistics is not None and schedule.fraction(0) > 0:
        raise MisconfigurationException(
            f"{pruner.criterion} needs gradients of at least one training step before the first event, but {schedule} "
            "starts at 0; let it start later"
        )


def check_regrowth(trainer: pl.Trainer, granularity: Granularity) -> None:
    """Check that regrowth has complete gradients, and a training of known length."""
    if not isinstance(granularity, Weights) or granularity.regrow is None:
        return
    if is_sharding(trainer):
        raise MisconfigurationException(
            f"{granularity.regrow} needs complete gradients, but {type(trainer.strategy).__name__} shards them over "
            "ranks; use Weights() without regrow, or strategy='ddp'"
        )
    if trainer.max_epochs in (None, -1) and trainer.max_steps < 0:
        raise MisconfigurationException(
            f"{granularity.regrow} ends at a share of the training, whose length is not limited: set max_epochs or "
            "max_steps on the Trainer"
        )


def check_scopes(pruner: Pruner, others: Iterable[Pruner], pl_module: pl.LightningModule) -> None:
    """Check that pruners of one kind share no parameters; block pruners are compared by `check_groups`."""
    if isinstance(pruner, BlockPruner):
        return
    own = pruner.scope.parameters(pl_module)
    for other in others:
        shared = sorted(own.keys() & other.scope.parameters(pl_module).keys())
        if shared:
            raise MisconfigurationException(
                f"two IterativePruning callbacks both prune {shared[0]!r} (and {len(shared) - 1} more); give them "
                "disjoint scopes"
            )


def check_groups(pruner: Pruner, others: Iterable[Pruner]) -> None:
    """Check that no two pruners rank the same channels or blocks, which disjoint scopes may still be coupled to."""
    for other in others:
        if isinstance(pruner, ChannelPruner) and isinstance(other, ChannelPruner) and pruner.groups & other.groups:
            raise MisconfigurationException(
                f"two IterativePruning callbacks both prune the channels of {min(pruner.groups & other.groups)!r}; "
                "give them disjoint scopes"
            )
        if isinstance(pruner, BlockPruner) and isinstance(other, BlockPruner) and pruner.names & other.names:
            raise MisconfigurationException(
                f"two IterativePruning callbacks both prune the block {min(pruner.names & other.names)!r}; give them "
                "disjoint scopes"
            )


def check_dense(pl_module: pl.LightningModule, state_key: str, pruned_before: bool) -> None:
    """Check that a new pruner does not silently treat a network that was pruned before as the original.

    Args:
        pl_module: The network.
        state_key: Key of the pruner in checkpoints.
        pruned_before: Whether the network was pruned before this training; otherwise a checkpoint made it smaller.
    """
    if not is_pruned(pl_module):
        return
    if not pruned_before:
        raise MisconfigurationException(
            f"the checkpoint holds a pruned network, but no state of {state_key}: shares would refer to the pruned "
            "network. Resume with the granularity and the scope that wrote the checkpoint."
        )
    now = sum(parameter.numel() for parameter in pl_module.parameters())
    rank_zero_warn(
        f"the network was pruned before this training, from {params_as_built(pl_module):,} parameters to {now:,}: "
        "budgets and sparsities of this IterativePruning refer to the network as it is now. To continue towards the "
        "budget of the earlier pruning, give the Trainer the same callback again, or resume from a checkpoint."
    )


def check_same_network(pruner: Pruner, pl_module: pl.LightningModule) -> None:
    """Check that a pruner that continues in another training continues with its own network."""
    own = dict(pl_module.named_parameters())
    if isinstance(pruner, MaskPruner) and is_sharded(pl_module):
        same = True  # no rank has the whole network
    elif isinstance(pruner, MaskPruner):
        masked = ((own[name], mask) for name, mask in pruner.masks.items() if name in own)
        same = all(p.shape == mask.shape and not bool(p.detach()[~mask.to(p.device)].any()) for p, mask in masked)
    else:
        same = is_pruned(pl_module)
    if not same:
        raise MisconfigurationException(
            f"this IterativePruning has pruned another network, in {pruner.event} events; give every network its own "
            "callback (and its own AccuracyGuard), or resume from a checkpoint of that training"
        )


def check_gradients(pruner: Pruner, pl_module: pl.LightningModule, unseen: list[str], certain: bool) -> None:
    """Check that gradients reach every layer that is scored by them.

    A frozen layer receives none unless a ``BaseFinetuning`` callback may unfreeze it; other layers may be trained
    alternately.

    Args:
        pruner: The pruner.
        pl_module: The network.
        unseen: Layers and parameters that have received no gradient so far.
        certain: Whether enough batches have passed that layers trained alternately would have received gradients.

    Raises:
        MisconfigurationException: If a layer will not receive gradients.
    """
    may_unfreeze = any(isinstance(callback, FINETUNINGS) for callback in pl_module.trainer.callbacks)  # type: ignore[attr-defined]
    for name in unseen:
        own = dict(pl_module.named_parameters())
        parameters = [own[name]] if name in own else list(pl_module.get_submodule(name).parameters(recurse=False))
        frozen = not any(parameter.requires_grad for parameter in parameters)
        if (certain and not frozen) or (frozen and not may_unfreeze):
            raise MisconfigurationException(
                f"{pruner.criterion} needs gradients of {name!r}; none has reached it so far ({len(unseen)} such "
                f"layers). Is it frozen or unused? Exclude it: Scope(exclude=[{name!r}])"
                f"{', or unfreeze it with a BaseFinetuning callback' if frozen else ''}."
            )


def warn_unanalyzed(pruner: Pruner, pl_module: pl.LightningModule) -> None:
    """Warn of layers that are trained although ``forward``, which the analysis follows, does not use them."""
    if not isinstance(pruner, ChannelPruner):
        return
    trained = {name for name, parameter in pl_module.named_parameters() if parameter.grad is not None}
    unanalyzed = sorted(trained & set(pruner.unused))
    if unanalyzed:
        rank_zero_warn(
            f"{', '.join(unanalyzed[:3])}{', ...' if len(unanalyzed) > 3 else ''} are trained, but `forward` does not "
            "use them on the example input: they keep their shapes. If they read channels that pruning removes, "
            "training will fail at the first event: call them in `forward`, or exclude the layers that feed them with "
            "Scope(exclude=[...])."
        )
