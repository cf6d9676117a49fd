"""Dynamic sparse training: exchange of weights between the masked and the unmasked ones of a layer, in a Trainer."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.callbacks.pruning.apply_on_rank import mask_averages
from lightning_prune.callbacks.trainer.ranks import check_masks_agree
from lightning_prune.callbacks.trainer.training_time import share_done
from lightning_prune.masks.enforcer import MaskEnforcer
from lightning_prune.masks.regrowth import Regrowth, exchange


class Regrowing:
    """Regrows masked weights, and masks as many others of the same layer, just before an optimizer steps.

    Args:
        regrowth: How many weights are exchanged, and how often; None for none.
    """

    def __init__(self, regrowth: Regrowth | None) -> None:
        self._regrowth = regrowth
        self._rounds: dict[int, int] = {}  # index of the optimizer -> its last exchange, in units of ``every`` steps

    def begin_training(self) -> None:
        """Reset the counters: a new training counts its steps from 0."""
        self._rounds = {}

    def exchange_if_due(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer, masks: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The masks that change, empty if no exchange is due; newly masked weights are zeroed.

        The gradients must be complete, and equal on all ranks. If those that score masked weights are not finite, as
        after an overflow under AMP, the exchange is postponed to the next step.

        Args:
            trainer: The Trainer.
            pl_module: The network.
            optimizer: Optimizer that is about to step.
            masks: Parameter name -> mask.
        """
        if self._regrowth is None:
            return {}
        number = trainer.strategy.optimizers.index(optimizer)
        current, share = trainer.global_step // self._regrowth.every, self._regrowth.share_at(share_done(trainer))
        if not masks:
            self._rounds[number] = current
        if share == 0 or current <= self._rounds.get(number, 0):
            return {}
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        trained = {
            name: parameter
            for name, parameter in pl_module.named_parameters()
            if name in masks and id(parameter) in own and parameter.grad is not None
        }
        scores = {name: self._regrowth_scores(name, parameter, current) for name, parameter in trained.items()}
        if not all(bool(score.isfinite().all()) for score in scores.values()):
            return {}
        self._rounds[number] = current
        exchanged = {
            name: exchange(parameter.detach(), scores[name], masks[name].to(parameter.device), share)
            for name, parameter in trained.items()
        }
        MaskEnforcer(trained, {name: kept for name, (kept, _) in exchanged.items()}).apply([optimizer])
        changed = {
            name: mask.cpu() for name, (_, mask) in exchanged.items() if not mask.equal(masks[name].to(mask.device))
        }
        check_masks_agree(trainer, changed)
        mask_averages(trainer, pl_module, changed)
        return changed

    def _regrowth_scores(self, name: str, parameter: torch.nn.Parameter, current: int) -> Tensor:
        """Scores of masked weights, of which the highest are regrown."""
        assert self._regrowth is not None
        assert parameter.grad is not None
        if self._regrowth.by == "gradient":
            return parameter.grad.to_dense().abs()
        generator = torch.Generator().manual_seed(zlib.crc32(f"{current}/{name}".encode()))
        return torch.rand(parameter.shape, generator=generator).to(parameter.device)

    def state_dict(self) -> dict[int, int]:
        """State as plain numbers."""
        return dict(self._rounds)

    def load_state_dict(self, state: Mapping[int, int]) -> None:
        """Restore what ``state_dict`` returned."""
        self._rounds = dict(state)
