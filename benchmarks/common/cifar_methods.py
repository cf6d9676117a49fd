"""What the CIFAR-10 benchmark compares: the callbacks of every method, ours and others'."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning
from torch import Tensor, nn

from lightning_prune import Channels, IterativePruning, Regrowth, Scope, Weights
from lightning_prune.budgets import ERK, MACs, Sparsity
from lightning_prune.callbacks import Distillation, RecalibrateBatchNorm, Rewind
from lightning_prune.criteria import Criterion, Magnitude, Movement, Random
from lightning_prune.distilling import SoftTargets
from lightning_prune.schedules import Cubic, Exponential, Rounds, Schedule

DECAY = 5e-4  # weight decay of every training
SLACK = 1.015  # of the MACs asked for; one channel is up to 2.9 % of them, so what is reached lies around them
ROUNDS = Rounds(start=0.05, every=0.1, count=5, unit="share")  # better than 4 x 0.05, for Torch-Pruning and for ours
MASKING = Cubic(0.0, 0.6, every=0.03, unit="share")
LAST_MASKING = 0.67  # share of the training; ModelPruning only acts where an epoch ends

OURS, WIDE = "lightning_prune", "lightning_prune, residual streams too"
CHANNELS = (
    OURS, WIDE, "lightning_prune, not distilled", "plain L2", "Torch-Pruning", "Torch-Pruning, distilled",
    "random channels",
)  # fmt: skip
DOCUMENTED, EXPERT = "ModelPruning as documented", "ModelPruning by an expert"
WEIGHTS = ("cubic magnitude", "learning rate rewinding", "movement", "RigL, cubic", EXPERT, DOCUMENTED)


class TorchPruning(Callback):
    """Torch-Pruning's group-norm pruner with sparse learning, strength and importance as in its own CIFAR benchmark.

    Until the last event ``regularize`` adds to the gradients and takes the place of weight decay. Layers that write to
    the residual streams are left out: where a shortcut pads channels, it takes channels for coupled that are not.
    """

    def __init__(self, speed_up: float, schedule: Schedule, strength: float = 5e-4) -> None:
        self.speed_up, self.schedule, self.strength = speed_up, schedule, strength
        self.fraction = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network: Any = pl_module.get_submodule("network")
        example = torch.zeros(1, 3, 32, 32, device=pl_module.device)
        inner = [m for name, m in network.named_modules() if name.startswith("layer") and name.endswith(".conv1")]
        self.pixels: dict[Any, int] = {m: macs // m.weight.numel() for m, macs in macs_of_layers(network).items()}
        self.macs = self.count()
        import torch_pruning  # only where it is compared

        self.pruner = torch_pruning.pruner.GroupNormPruner(
            network, example, torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer="max"),
            reg=self.strength, global_pruning=True, pruning_ratio=1.0,
            iterative_steps=2 * sum(m.out_channels for m in inner),  # so that a step removes one channel
            ignored_layers=[m for m in self.pixels if m not in inner],
        )  # fmt: skip
        pl_module.train()

    def count(self) -> int:
        return sum(pixels * m.weight.numel() for m, pixels in self.pixels.items())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        share = trainer.global_step / int(trainer.estimated_stepping_batches)
        fraction = self.schedule.fraction(share)
        self.decay(trainer, 0.0 if fraction < 1 else DECAY)
        if fraction == self.fraction:
            return
        self.fraction = fraction
        most = self.macs * (1 - (1 - SLACK / self.speed_up) * fraction)
        while self.count() > most:
            assert self.pruner.current_step < self.pruner.iterative_steps, "Torch-Pruning has nothing left to remove"
            self.pruner.step()
        self.pruner.update_regularizer()
        pl_module.train()
        (optimizer,) = trainer.strategy.optimizers  # anew, but for its place in the learning rates
        optimizer.zero_grad(set_to_none=True)
        optimizer.param_groups[0]["params"] = list(pl_module.parameters())
        optimizer.state.clear()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.fraction < 1 and self.strength:
            self.pruner.regularize(pl_module.network)

    def decay(self, trainer: Trainer, weight: float) -> None:
        if self.strength:
            trainer.strategy.optimizers[0].param_groups[0]["weight_decay"] = weight


def macs_of_layers(network: nn.Module) -> dict[Any, int]:
    """Multiply-accumulates of each convolution and linear layer."""
    found: dict[Any, int] = {}
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]

    def note(module: Any, _: Any, output: Tensor) -> None:
        found[module] = module.weight.numel() * output[0, 0].numel()

    hooks = [layer.register_forward_hook(note) for layer in layers]
    network.eval()(torch.zeros(1, 3, 32, 32, device=next(network.parameters()).device))
    for hook in hooks:
        hook.remove()
    return found


def channels_of(method: str, goal: float, seed: int, dense: nn.Module) -> list[Callback]:
    """The callbacks of a method that removes channels."""
    taught: list[Callback] = [Distillation(copy.deepcopy(dense), [SoftTargets(4.0, 0.9)], module="network")]
    if method.startswith("Torch-Pruning"):
        return [TorchPruning(goal, ROUNDS), *(taught if "distilled" in method else [])]
    criterion: Criterion = Random(seed) if method == "random channels" else Magnitude(p=2)
    where = Channels(), Scope(include=["network.layer*.conv1"])
    if method == WIDE:
        where = Channels(ranking="isomorphic"), Scope()  # streams are scored on another scale than inner channels
    pruning = IterativePruning(ROUNDS, MACs(keep=SLACK / goal), criterion, *where)
    if method in ("plain L2", "random channels"):
        return [pruning]
    return [pruning, RecalibrateBatchNorm(8), *(taught if method in (OURS, WIDE) else [])]


def weights_of(method: str, goal: float, epochs: int, network: nn.Module) -> tuple[list[Callback], int]:
    """The callbacks of a method that masks weights, and how often the learning rate rises and falls."""
    if method == DOCUMENTED:
        return [ModelPruning("l1_unstructured", amount=goal)], 1
    if method == EXPERT:
        matrices = [(m, "weight") for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        return [
            ModelPruning(
                "l1_unstructured", matrices, amount=partial(amount_at, goal=goal, epochs=epochs),
                use_lottery_ticket_hypothesis=False,
            )
        ], 1  # fmt: skip
    if method == "learning rate rewinding":
        left = Exponential(0.0, 2 / 3, every=1 / 3, unit="share", left=1 - goal)
        return [IterativePruning(left, Sparsity(goal), Magnitude(), Weights()), Rewind(0, "step", "lr")], 3
    if method == "RigL, cubic":
        return [IterativePruning(MASKING, ERK(goal), Magnitude(), Weights(Regrowth(every=20, share=0.2)))], 1
    criterion = Movement() if method == "movement" else Magnitude()
    return [IterativePruning(MASKING, Sparsity(goal), criterion, Weights())], 1


def amount_at(epoch: int, goal: float, epochs: int) -> float:
    """What ``ModelPruning`` has to remove of what is left, so that a cubic ramp ends at ``goal``.

    Example:
        >>> [round(amount_at(epoch, goal=0.9, epochs=6), 4) for epoch in range(6)]
        [0.5203, 0.557, 0.4632, 0.1233, 0.0, 0.0]
    """
    last = max(1, math.floor(LAST_MASKING * epochs))  # epochs that end with an event
    before, after = (goal * (1 - (1 - min(e / last, 1)) ** 3) for e in (epoch, epoch + 1))
    return (after - before) / (1 - before)
