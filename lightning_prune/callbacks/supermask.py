"""Supermasks as a callback."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import nn
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_prune.callbacks.loading import averaged_copies
from lightning_prune.callbacks.pruning.iterative_pruning import IterativePruning
from lightning_prune.callbacks.trainer.lightning_packages import Callback, MisconfigurationException, is_overridden
from lightning_prune.callbacks.trainer.listeners import as_misconfiguration
from lightning_prune.callbacks.trainer.strategies import check_whole
from lightning_prune.masks.supermask import LearnedMasks
from lightning_prune.network.averages import copies_held_by
from lightning_prune.pruners.arguments import check_types
from lightning_prune.pruners.mask_pruner import MaskPruner
from lightning_prune.scope import Scope


class Supermask(Callback):
    """Weights stay what they were in the beginning; learned is which of them to use.

    Zhou et al. 2019, 'Deconstructing lottery tickets: zeros, signs, and the supermask', and Ramanujan et al. 2020,
    'What's hidden in a randomly weighted neural network?' (edge-popup, section 3.2): every weight w₀ has a score s, the
    network has w = w₀ for the best scores of each parameter and 0 for the others, and the scores are stepped with
    ∂L/∂s = ∂L/∂w · w₀. In a network that is not trained yet, scores begin at random and find a subnetwork; in a trained
    one, they begin with ``scores="magnitude"``, and the masks are tuned to the data (as in Mallya et al. 2018,
    'Piggyback').

    It steps where the network's own optimizer does, on the gradients that this is about to use: accumulated, reduced,
    unscaled and clipped. The optimizer itself leaves the weights alone; what lies outside the scope (biases and norms
    by default) trains as usual. Weights are masked at any time, so there is nothing to do at the end. Averaged copies
    that callbacks keep (EMA, SWA) have the masked weights, not averages of them; callbacks that average after a step
    come before this one. Checkpoints hold w₀ and the scores, twice the size of the weights. The sparsity is logged as
    ``supermask/sparsity``.

    All scores are ranked anew at every step, which takes time: 0.35 to 0.46 s a step for 11.8 million weights on one
    CPU core.

    Args:
        sparsity: The share of the weights of each parameter that are zero, in (0, 1).
        lr: Learning rate of the scores; by default that of the weights in the network's optimizer, with its schedule.
        momentum: Of their steps, in [0, 1).
        scores: How they begin: ``"random"``, or ``"magnitude"`` with |w₀|.
        scope: Which weights; all weight matrices by default.

    Raises:
        MisconfigurationException: If an argument is of the wrong kind or out of range, weights are frozen or in no
            optimizer, something else prunes them, a callback that averages comes later, or the strategy shards
            parameters.
    """

    def __init__(
        self,
        sparsity: float = 0.5,
        lr: float | None = None,
        momentum: float = 0.9,
        scores: Literal["random", "magnitude"] = "random",
        scope: Scope | None = None,
    ) -> None:
        _check_number("sparsity", sparsity, "in (0, 1)", lambda value: 0 < value < 1)
        _check_number("momentum", momentum, "in [0, 1)", lambda value: 0 <= value < 1)
        if lr is not None:
            _check_number("lr", lr, "above 0, or None", lambda value: 0 < value < math.inf)
        if scores not in ("random", "magnitude"):
            raise MisconfigurationException(f"Supermask scores={scores!r} is not known; use 'random' or 'magnitude'")
        self.sparsity, self.lr, self.momentum, self.scores = sparsity, lr, momentum, scores
        self.scope = Scope() if scope is None else scope
        with as_misconfiguration():
            check_types("Supermask", scope=self.scope)
        self._masks: LearnedMasks | None = None
        self._saved: dict[str, Any] | None = None  # what a checkpoint has brought
        self._handles: list[RemovableHandle] = []

    @property
    def state_key(self) -> str:
        """One key for each scope."""
        return self._generate_state_key(scope=repr(self.scope))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nobody has whole scores where ranks hold parts of the weights."""
        check_whole(trainer, self)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The weights of now are w₀, unless this training goes on."""
        _check_order(self, trainer, pl_module)
        own = self._parameters(pl_module)
        _check_trained_by(self, trainer, pl_module, own)
        if self._saved is None and self._masks is not None:
            _check_same_network(self._masks, own)
            self._saved = self._masks.state_dict()
        initial = own if self._saved is None else {n: w.to(own[n].device) for n, w in self._saved["initial"].items()}
        self._masks = LearnedMasks(initial, self.sparsity, self.momentum, self.scores)
        if self._saved is not None:
            self._masks.load_state_dict(self._saved)
            self._saved = None
        self._masks.put_into(pl_module)
        self._share(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Step with the optimizers."""
        self._release()
        for optimizer in trainer.strategy.optimizers:
            before = partial(self._before_step, pl_module)
            self._handles.append(optimizer.register_step_pre_hook(before))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Averages of masked weights would be neither w₀ nor 0."""
        self._share(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the share of zeros; some callbacks average now."""
        self._share(pl_module)
        own = self._parameters(pl_module).values()
        zeros = sum(int((parameter == 0).sum()) for parameter in own) / sum(parameter.numel() for parameter in own)
        pl_module.log("supermask/sparsity", zeros, prog_bar=True)

    def on_rollback(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The masks stay what they are."""
        if self._masks is not None:
            self._masks.put_into(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the optimizers."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """w₀, scores and momentum; plain tensors and numbers."""
        return {"masks": None if self._masks is None else self._masks.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._saved = state_dict["masks"]

    def _parameters(self, pl_module: pl.LightningModule) -> dict[str, nn.Parameter]:
        with as_misconfiguration():
            return self.scope.parameters(pl_module)

    def _before_step(
        self, pl_module: pl.LightningModule, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Step with the gradients that are there, or with those that the closure is going to make."""
        _, *given = args
        closure = given.pop(0) if given else kwargs.get("closure")
        if closure is None:
            self._step(pl_module, optimizer)
            return None

        def stepping() -> Any:
            loss = closure()
            self._step(pl_module, optimizer)
            return loss

        return (optimizer, *given), {**kwargs, "closure": stepping}

    @torch.no_grad()
    def _step(self, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Step the scores, and leave no gradient to the optimizer; one that unscales by itself has told its scale."""
        assert self._masks is not None
        lrs = {id(parameter): float(group["lr"]) for group in optimizer.param_groups for parameter in group["params"]}
        scaler, overflow = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        gradients, rates = {}, {}
        for name, parameter in pl_module.named_parameters():
            if name in self._masks.scores and id(parameter) in lrs and parameter.grad is not None:
                gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
                gradients[name] = gradient if scaler is None else gradient.float() / scaler
                rates[name] = lrs[id(parameter)] if self.lr is None else self.lr
                parameter.grad = None
        if gradients and not (overflow is not None and bool(overflow)):
            self._masks.step(gradients, rates)
            self._masks.put_into(pl_module)

    @torch.no_grad()
    def _share(self, pl_module: pl.LightningModule) -> None:
        for copy in averaged_copies(pl_module):
            theirs = dict(copy.named_parameters())
            for name, parameter in self._parameters(pl_module).items():
                theirs[name].data.copy_(parameter)

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _check_number(name: str, value: Any, what: str, fits: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not fits(value):
        raise MisconfigurationException(f"Supermask {name}={value!r} must be a number {what}")


def _check_order(callback: Supermask, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """What averages after a step must do so before its copies get the masked weights; by now there are copies."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for later in callbacks[callbacks.index(callback) + 1 :]:
        if is_overridden("on_train_batch_end", later, Callback) and copies_held_by([later], pl_module):
            raise MisconfigurationException(
                f"Supermask must come after {type(later).__name__} in callbacks: what that averages once the copies "
                "have the masked weights is, by rounding, no longer exactly the masked initial weights"
            )


def _check_trained_by(
    callback: Supermask, trainer: pl.Trainer, pl_module: pl.LightningModule, own: dict[str, nn.Parameter]
) -> None:
    """Every weight needs a gradient and an optimizer, and nobody else who prunes it."""
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(other, IterativePruning) and not isinstance(other.pruner, MaskPruner):
            raise MisconfigurationException(
                "Supermask keeps every weight for its masks, so IterativePruning cannot remove any in the same "
                "training; let it do so before, or after"
            )
        scope = other.pruner.scope if isinstance(other, IterativePruning) else getattr(other, "scope", None)
        if isinstance(other, (IterativePruning, Supermask)) and other is not callback and scope is not None:
            shared = sorted(own.keys() & scope.parameters(pl_module).keys())
            if shared:
                raise MisconfigurationException(
                    f"Supermask and another {type(other).__name__} both mask {shared[0]!r} (and {len(shared) - 1} "
                    "more); give them disjoint scopes"
                )
    stepped = set()
    for optimizer in trainer.strategy.optimizers:
        ids = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        stepped |= ids
        if isinstance(optimizer, LBFGS) and any(id(parameter) in ids for parameter in own.values()):
            raise MisconfigurationException("Supermask cannot step with LBFGS, which evaluates several times a step")
    for name, parameter in own.items():
        if not parameter.requires_grad or id(parameter) not in stepped:
            where = "is in no optimizer" if parameter.requires_grad else "is frozen"
            raise MisconfigurationException(
                f"Supermask learns from the gradient of {name!r} when its optimizer steps, but it {where}; exclude it: "
                f"Scope(exclude=[{name!r}])"
            )


def _check_same_network(masks: LearnedMasks, own: dict[str, nn.Parameter]) -> None:
    now = masks.weights_now()
    if now.keys() != own.keys() or not all(torch.equal(now[name], own[name].detach().to(now[name])) for name in own):
        raise MisconfigurationException(
            "this Supermask holds the weights of another network; give every network one of its own, or go on from a "
            "checkpoint of that training"
        )
