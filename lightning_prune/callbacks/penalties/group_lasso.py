"""``GroupLasso``: group lasso regularizer over coupled channels."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_prune.callbacks.penalties.slimming import check_strength
from lightning_prune.callbacks.trainer.example_batch import declared_example, example_from_batch
from lightning_prune.callbacks.trainer.lightning_packages import Callback, MisconfigurationException
from lightning_prune.callbacks.trainer.listeners import as_misconfiguration
from lightning_prune.callbacks.trainer.strategies import check_whole
from lightning_prune.callbacks.trainer.training_time import time_of
from lightning_prune.checkpoint.manifest import is_pruned
from lightning_prune.coupling.analysis import find_coupling
from lightning_prune.coupling.groups import Group
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import named_tensors
from lightning_prune.penalties import add_group_lasso_subgradient
from lightning_prune.schedules.schedule import Schedule
from lightning_prune.scope import Scope
from lightning_prune.surgery.plan import Plan
from lightning_prune.surgery.report import Report


class GroupLasso(Callback):
    """Group lasso regularizer, which drives all weights of a removable unit (coupled channels) towards zero together.

    strength · Σ_groups √n Σ_units ‖w_unit‖₂ (Yuan & Lin 2006; over the coupled structures of Fang et al. 2023,
    'DepGraph', section 3.3), where n is the number of weights that are removed with a unit: those of the layers that
    output its channels, of their norms, and of the layers that read them. Its subgradient is added to the unscaled,
    fully accumulated gradients before gradient clipping; the logged loss does not change. The penalty is logged as
    ``penalty/group_lasso``. Prune with ``Magnitude`` afterwards.

    Args:
        strength: Weight of the penalty in the loss, typically 1e-5 to 1e-3; at least 0.
        schedule: Schedule of the fraction of ``strength`` that is applied. Default: all of it throughout.
        scope: Modules whose groups are penalized. Default: all.

    Raises:
        MisconfigurationException: If ``strength`` is out of range, nothing can be penalized, or the strategy shards
            parameters.
    """

    def __init__(self, strength: float = 1e-4, schedule: Schedule | None = None, scope: Scope | None = None) -> None:
        check_strength(self, strength)
        self.strength, self.schedule, self.scope = strength, schedule, Scope() if scope is None else scope
        self._example: Example | None = None
        self._groups: list[Group] | None = None  # None after the network has changed

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Discard the groups of an earlier training."""
        check_whole(trainer, self)
        if stage == "fit":
            self._example, self._groups = None, None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the groups if the network declares an example input."""
        self._example = declared_example(pl_module)
        if self._example is not None:
            self._find_groups(pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Otherwise take the example input from the first batch."""
        if self._example is None:
            self._example = example_from_batch(pl_module, batch, needed=True)
        if self._groups is None:
            self._find_groups(pl_module)

    def on_prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan, report: Report) -> None:
        """Discard the groups, which have changed."""
        if plan.shrinks:
            self._groups = None

    def on_rollback(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Discard the groups, which have changed."""
        self._groups = None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the subgradient to the gradients of the weights that this optimizer updates."""
        if self._groups is None:  # an event has taken place in this batch
            self._find_groups(pl_module)
        assert self._groups is not None
        share = 1.0 if self.schedule is None else self.schedule.fraction(time_of(trainer, self.schedule))
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        tensors = dict(named_tensors(pl_module))
        penalty = add_group_lasso_subgradient(self._groups, tensors, self.strength * share, stepped)
        pl_module.log("penalty/group_lasso", penalty, on_step=False, on_epoch=True)

    def _find_groups(self, pl_module: pl.LightningModule) -> None:
        assert self._example is not None
        with as_misconfiguration():
            coupling = find_coupling(pl_module, self._example)
        try:
            self._groups = list(self.scope.groups(pl_module, coupling)[0].values())
        except ValueError as error:
            if not is_pruned(pl_module):
                raise MisconfigurationException(str(error)) from error
            rank_zero_warn(f"GroupLasso has no more weights to penalize: {error}")
            self._groups = []
            return
        trained = {name for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
        if not any(member.tensor in trained for group in self._groups for member in group.members):
            raise MisconfigurationException("GroupLasso has nothing to penalize: all weights in its scope are frozen")
