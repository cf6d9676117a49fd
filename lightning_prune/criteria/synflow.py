"""Synaptic flow: pruning before training, without data."""

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
    """How much of the flow through the network a weight carries: θ ⊙ ∂R/∂θ, with R = 1ᵀ |θ_L| ... |θ_1| 1.

    Tanaka et al. 2020, 'Pruning neural networks without any data by iteratively conserving synaptic flow', eq. 2 and
    algorithm 1. R is what a copy of the network, in float64 and in eval mode, with absolute weights and batch norms
    that do not shift, makes of inputs of ones. Needs no data and no training: ``Constant(0)`` prunes before the first
    step. Weights go in ``rounds``, each with scores made anew and the same share of what is left, so that no layer is
    emptied. For networks of linear layers, convolutions, batch norms and ReLU-like nonlinearities; others are followed
    but not linearised. With ``Channels`` a unit has the sum over all weights that go with it, in one round an event.

    Args:
        rounds: Parts in which the weights of one event are masked; 100 in the paper.

    Raises:
        ValueError: If ``rounds`` is not an integer of at least 1.
    """

    rounds: int = 100

    scores_channels = True
    scores_weights = True

    def __post_init__(self) -> None:
        check_integer(self, "rounds", self.rounds, minimum=1)

    def check(self, group: Group, scoring: Scoring) -> None:
        """The shape of the inputs must be known."""
        _inputs(scoring)

    def check_weights(self, name: str, scoring: Scoring) -> None:
        """The shape of the inputs must be known."""
        _inputs(scoring)

    def score_units(self, group: Group, scoring: Scoring) -> Tensor:
        """The sum of every unit, relative to the mean of the group."""
        flow = _flow(scoring)
        own = {name: flow[name] for name in parameters_of(group, scoring) if name in flow}
        return by_mean(combine(sums_of_units(group, own), scoring.aggregate)) if own else torch.zeros(group.size)

    def score_weights(self, name: str, scoring: Scoring) -> Tensor:
        """The flow through every weight."""
        flow = _flow(scoring)
        return flow[name] if name in flow else torch.zeros(scoring.tensors[name].shape)


def _flow(scoring: Scoring) -> dict[str, Tensor]:
    """θ ⊙ ∂R/∂θ of every parameter that has a part in R, made once for all."""
    if "flow" not in scoring.memo:
        scoring.memo["flow"] = _measured(scoring)
    found: dict[str, Tensor] = scoring.memo["flow"]
    return found


def _measured(scoring: Scoring) -> dict[str, Tensor]:
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
    """What forward receives, with ones for every number that is not whole."""
    if scoring.example is None:
        raise CannotScoreError(
            "SynFlow runs the network on inputs of ones, of which nobody has told the shape: set `example_input_array` "
            "on the LightningModule"
        )

    def ones(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return torch.ones_like(value, dtype=torch.double) if floating else value

    example = scoring.example
    return replace(example, args=tree_map(ones, example.args), kwargs=tree_map(ones, dict(example.kwargs)))
