"""What `IterativePruning` refuses, and the cures that it names."""

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
    """What is gathered from gradients needs a training step before the first event."""
    if pruner.statistics is not None and schedule.fraction(0) > 0:
        raise MisconfigurationException(
            f"{pruner.criterion} needs gradients of at least one training step before the first event, but {schedule} "
            "starts at 0; let it start later"
        )


def check_regrowth(trainer: pl.Trainer, granularity: Granularity) -> None:
    """Weights come back by whole gradients, until a share of the training is over."""
    if not isinstance(granularity, Weights) or granularity.regrow is None:
        return
    if is_sharding(trainer):
        raise MisconfigurationException(
            f"{granularity.regrow} looks at whole gradients, of which {type(trainer.strategy).__name__} gives every "
            "rank a part; use Weights() without regrow, or strategy='ddp'"
        )
    if trainer.max_epochs in (None, -1) and trainer.max_steps < 0:
        raise MisconfigurationException(
            f"{granularity.regrow} ends at a share of the training, which has no end: set max_epochs or max_steps on "
            "the Trainer"
        )


def check_scopes(pruner: Pruner, others: Iterable[Pruner], pl_module: pl.LightningModule) -> None:
    """Two pruners of one kind must not share parameters; for blocks, of which some may be gone, `check_groups` asks."""
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
    """Two pruners must not rank the same channels, which layers in both of their scopes may write to."""
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


def check_dense(pl_module: pl.LightningModule, state_key: str, came_pruned: bool) -> None:
    """A pruner that begins anew must not silently take a network that was pruned before for the original.

    Args:
        pl_module: The network.
        state_key: Names the pruner.
        came_pruned: Whether it was pruned before this training; else a checkpoint has made it small.
    """
    if not is_pruned(pl_module):
        return
    if not came_pruned:
        raise MisconfigurationException(
            f"the checkpoint holds a pruned network, but no state of {state_key}: shares would be taken of the pruned "
            "network. Resume with the granularity and the scope that wrote the checkpoint."
        )
    now = sum(parameter.numel() for parameter in pl_module.parameters())
    rank_zero_warn(
        f"the network was pruned before this training, from {params_as_built(pl_module):,} parameters to {now:,}: "
        "budgets and sparsities of this IterativePruning refer to the network as it is now. To go on towards the "
        "budget of the pruning before, give the Trainer the same callback again, or resume from a checkpoint."
    )


def check_same_network(pruner: Pruner, pl_module: pl.LightningModule) -> None:
    """A pruner that goes on in another training must have its own network before it."""
    own = dict(pl_module.named_parameters())
    if isinstance(pruner, MaskPruner) and is_sharded(pl_module):
        ours = True  # nobody has all of it
    elif isinstance(pruner, MaskPruner):
        masked = ((own[name], mask) for name, mask in pruner.masks.items() if name in own)
        ours = all(p.shape == mask.shape and not bool(p.detach()[~mask.to(p.device)].any()) for p, mask in masked)
    else:
        ours = is_pruned(pl_module)
    if not ours:
        raise MisconfigurationException(
            f"this IterativePruning has pruned another network, in {pruner.event} events; give every network one of "
            "its own (and an AccuracyGuard of its own), or go on from a checkpoint of that training"
        )


def check_gradients(pruner: Pruner, pl_module: pl.LightningModule, unseen: list[str], certain: bool) -> None:
    """Gradients have to reach everything that is ranked by them; they have not reached the layers ``unseen`` so far.

    A layer whose parameters are frozen will never see one, unless a callback is there that may unfreeze it; others may
    take turns until it is ``certain``.
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
                f"{', or unfreeze it with a callback, BaseFinetuning' if frozen else ''}."
            )


def warn_unfollowed(pruner: Pruner, pl_module: pl.LightningModule) -> None:
    """Say which layers are trained although the analysis, which follows ``forward``, has not seen them."""
    if not isinstance(pruner, ChannelPruner):
        return
    trained = {name for name, parameter in pl_module.named_parameters() if parameter.grad is not None}
    unfollowed = sorted(trained & set(pruner.unused))
    if unfollowed:
        rank_zero_warn(
            f"{', '.join(unfollowed[:3])}{', ...' if len(unfollowed) > 3 else ''} are trained, but `forward` does not "
            "use them on the example input: they keep their shapes. If they read channels that pruning removes, "
            "training will fail at the first event: call them in `forward`, or exclude the layers that feed them with "
            "Scope(exclude=[...])."
        )
