"""Synaptic flow criterion, for pruning before training and without data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves, tree_map

from lightning_prune.coupling.groups import Group
from lightning_prune.criteria.criterion import (
    CannotScoreError,
    Criterion,
    Scoring,
    by_mean,
    combine,
    parameters_of,
    sums_of_units,
)
from lightning_prune.network.argument_checks import check_integer
from lightning_prune.network.copies import copy_of
from lightning_prune.network.example_input import Example


@dataclass(frozen=True)
class SynFlow(Criterion):
    """Synaptic flow through a weight: θ ⊙ ∂R/∂θ, with R = 1ᵀ |θ_L| ... |θ_1| 1.

    Tanaka et al. 2020, 'Pruning neural networks without any data by iteratively conserving synaptic flow', eq. 2 and
    algorithm 1. R is the sum of the outputs for inputs of ones, of a float64 copy of the network in eval mode, with
    absolute weights and batch norms with a mean of zero. It needs neither data nor training: ``Constant(0)`` prunes
    before the first step. Each event masks weights in ``rounds`` rounds with new scores in each, and every round
    removes the same share of the remaining weights, so that no layer loses all of its weights. The method is made for
    linear layers, convolutions, batch norms and ReLU-like nonlinearities; other operations are run, but not linearized.

    With ``Channels``, the score of a unit is the sum over its weights, divided by the mean of its group, and an event
    has one round. Scores have the shape of the weight, or (units,).

    Args:
        rounds: Rounds in which the weights of one event are masked, at least 1; 100 in the paper.

    Raises:
        ValueError: If ``rounds`` is not an integer of at least 1.
    """

    rounds: int = 100

    scores_channels = True
    scores_weights = True

    def __post_init__(self) -> None:
        check_integer(self, "rounds", self.rounds, minimum=1)

    def check(self, group: Group, scoring: Scoring) -> None:
        """There must be an example input, which gives the shape of the ones."""
        _inputs(scoring)

    def check_weights(self, name: str, scoring: Scoring) -> None:
        """There must be an example input, which gives the shape of the ones."""
        _inputs(scoring)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sum over the weights of every unit, divided by the mean of the group; shape (units,)."""
        flow = _flow(scoring)
        own = {name: flow[name] for name in parameters_of(group, scoring) if name in flow}
        return by_mean(combine(sums_of_units(group, own), scoring.aggregate)) if own else torch.zeros(group.size)

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """The flow through every weight, of its shape."""
        flow = _flow(scoring)
        return flow[name] if name in flow else torch.zeros(scoring.tensors[name].shape)


def _flow(scoring: Scoring) -> dict[str, Tensor]:
    """θ ⊙ ∂R/∂θ of every parameter that R depends on, computed once per event."""
    if "flow" not in scoring.memo:
        scoring.memo["flow"] = _compute_flow(scoring)
    found: dict[str, Tensor] = scoring.memo["flow"]
    return found


def _compute_flow(scoring: Scoring) -> dict[str, Tensor]:
    inputs = _inputs(scoring)
    network = copy_of(scoring.module).double().eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(True)
            parameter.copy_(scoring.tensors[name].abs())
        for module in network.modules():
            if isinstance(module, _NormBase) and module.running_mean is not None:
                module.running_mean.zero_()

    with torch.enable_grad():
        outputs = tree_leaves(inputs.run(network))
        flow = torch.stack([o.sum() for o in outputs if isinstance(o, Tensor) and o.requires_grad]).sum()
        parameters = dict(network.named_parameters())
        gradients = torch.autograd.grad(flow, list(parameters.values()), allow_unused=True)
    return {
        name: (parameter.detach() * gradient).float().cpu()
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        if gradient is not None
    }


def _inputs(scoring: Scoring) -> Example:
    """The example input, with ones in place of its floating-point values."""
    if scoring.example is None:
        raise CannotScoreError(
            "SynFlow runs the network on inputs of ones and needs their shape: set `example_input_array` on the "
            "LightningModule"
        )

    def ones(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return torch.ones_like(value, dtype=torch.double) if floating else value

    example = scoring.example
    return replace(example, args=tree_map(ones, example.args), kwargs=tree_map(ones, dict(example.kwargs)))
