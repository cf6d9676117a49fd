"""Supermasks: masks of frozen weights, learned by gradient descent on scores."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_prune.masks.select import lowest_masks


class LearnedMasks:
    """Masks of frozen weights w₀, learned as the highest of one trainable score per weight.

    Ramanujan et al. 2020, 'What's hidden in a randomly weighted neural network?', section 3.2 (edge-popup): the forward
    pass uses w = w₀ · h(s), where h is 1 for the highest scores of a parameter and 0 for all others. The backward pass
    treats h as the identity (straight-through estimator), so that ∂L/∂s = ∂L/∂w · w₀. Scores are trained by SGD.

    Args:
        weights: Parameter name -> w₀.
        sparsity: Share of masked weights in every parameter, in [0, 1); one weight always survives.
        momentum: Momentum of SGD.
        scores: Initial scores: ``"random"`` (Kaiming uniform) or ``"magnitude"`` (|w₀|).

    Example:
        >>> masks = LearnedMasks({"w": torch.tensor([3.0, -2.0, 1.0, 4.0])}, 0.5, 0.0, "magnitude")
        >>> masks.weights_now()["w"]
        tensor([3., 0., 0., 4.])
        >>> masks.step({"w": torch.tensor([0.0, 5.0, 0.0, 0.0])}, {"w": 0.1})  # s = 2 + 0.1 · 5 · 2 = 3 for the second
        >>> masks.scores["w"]
        tensor([3., 3., 1., 4.])
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        sparsity: float,
        momentum: float,
        scores: Literal["random", "magnitude"],
    ) -> None:
        self.sparsity = sparsity
        self.initial = {name: weight.detach().clone() for name, weight in weights.items()}
        make = _magnitude if scores == "magnitude" else _random
        self.scores = {name: make(name, weight) for name, weight in self.initial.items()}
        groups = [{"params": [score]} for score in self.scores.values()]
        self._sgd = torch.optim.SGD(groups, lr=0.0, momentum=momentum)

    def masks(self) -> dict[str, Tensor]:
        """Parameter name -> bool mask of its shape, True where the weight survives."""
        sizes = {name: score.numel() for name, score in self.scores.items()}
        counts = {name: min(round(self.sparsity * size), size - 1) for name, size in sizes.items()}
        return lowest_masks(self.scores, {}, counts)

    def weights_now(self) -> dict[str, Tensor]:
        """The masked weights w₀ · h(s), by parameter name."""
        return {name: torch.where(mask, self.initial[name], 0) for name, mask in self.masks().items()}  # no −0.0

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        """Take an SGD step on the scores of the parameters in ``gradients``.

        Args:
            gradients: Parameter name -> gradient ∂L/∂w.
            rates: Parameter name -> learning rate.
        """
        for (name, score), group in zip(self.scores.items(), self._sgd.param_groups, strict=True):
            if name in gradients:
                score.grad = gradients[name].float() * self.initial[name].float()
                group["lr"] = rates[name]
        self._sgd.step()
        self._sgd.zero_grad(set_to_none=True)

    @torch.no_grad()
    def put_into(self, module: nn.Module) -> None:
        """Set the parameters of ``module`` to w₀ · h(s), in place."""
        own = dict(module.named_parameters())
        for name, weight in self.weights_now().items():
            own[name].data.copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        """Initial weights, scores and the state of SGD, as plain tensors and numbers."""
        copies = {name: score.clone() for name, score in self.scores.items()}
        return {"initial": dict(self.initial), "scores": copies, "sgd": deepcopy(self._sgd.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned, on the present devices."""
        for own, saved in ((self.initial, state["initial"]), (self.scores, state["scores"])):
            for name, tensor in own.items():
                tensor.copy_(saved[name])
        self._sgd.load_state_dict(state["sgd"])


def _magnitude(name: str, weight: Tensor) -> Tensor:
    return weight.abs().float()


def _random(name: str, weight: Tensor) -> Tensor:
    """Kaiming uniform with a = √5, as layers are initialized; seeded by the name, so that all ranks have the same."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    bound = 1 / math.sqrt(max(1, weight[0].numel()) if weight.dim() > 1 else weight.numel())
    return torch.empty(weight.shape).uniform_(-bound, bound, generator=generator).to(weight.device)
