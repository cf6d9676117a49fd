"""When masked weights come back, and which."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.callbacks.pruning.carry_out import mask_averages
from lightning_prune.callbacks.trainer.ranks import check_masks_agree
from lightning_prune.callbacks.trainer.training_time import share_done
from lightning_prune.masks.enforcer import MaskEnforcer
from lightning_prune.masks.regrowth import Regrowth, exchange


class Regrowing:
    """Exchanges masked weights for others of the same layer, just before an optimizer steps.

    Args:
        regrowth: How many and how often; None for masks that stay.
    """

    def __init__(self, regrowth: Regrowth | None) -> None:
        self._regrowth = regrowth
        self._turns: dict[int, int] = {}  # index of the optimizer -> the last turn it has had

    def act(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer, masks: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The masks that change, if it is time; what has gone is zero then.

        The gradients are whole, and the same on every rank. Where those that rank weights are not finite, as a
        GradScaler may have made them, the next step will do.

        Args:
            trainer: The Trainer.
            pl_module: The network.
            optimizer: What is about to step.
            masks: Parameter name -> mask.
        """
        if self._regrowth is None:
            return {}
        number = trainer.strategy.optimizers.index(optimizer)
        turn, share = trainer.global_step // self._regrowth.every, self._regrowth.share_at(share_done(trainer))
        if not masks:
            self._turns[number] = turn
        if share == 0 or turn <= self._turns.get(number, 0):
            return {}
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        trained = {
            name: parameter
            for name, parameter in pl_module.named_parameters()
            if name in masks and id(parameter) in own and parameter.grad is not None
        }
        promises = {name: self._promise(name, parameter, turn) for name, parameter in trained.items()}
        if not all(bool(promise.isfinite().all()) for promise in promises.values()):
            return {}
        self._turns[number] = turn
        found = {
            name: exchange(parameter.detach(), promises[name], masks[name].to(parameter.device), share)
            for name, parameter in trained.items()
        }
        MaskEnforcer(trained, {name: left for name, (left, _) in found.items()}).apply([optimizer])
        changed = {name: mask.cpu() for name, (_, mask) in found.items() if not mask.equal(masks[name].to(mask.device))}
        check_masks_agree(trainer, changed)
        mask_averages(trainer, pl_module, changed)
        return changed

    def _promise(self, name: str, parameter: torch.nn.Parameter, turn: int) -> Tensor:
        assert self._regrowth is not None
        assert parameter.grad is not None
        if self._regrowth.by == "gradient":
            return parameter.grad.to_dense().abs()
        generator = torch.Generator().manual_seed(zlib.crc32(f"{turn}/{name}".encode()))
        return torch.rand(parameter.shape, generator=generator).to(parameter.device)

    def begin_training(self) -> None:
        """Steps are counted anew."""
        self._turns = {}

    def state_dict(self) -> dict[int, int]:
        """Plain numbers."""
        return dict(self._turns)

    def load_state_dict(self, state: Mapping[int, int]) -> None:
        """Take over what ``state_dict`` returned."""
        self._turns = dict(state)
