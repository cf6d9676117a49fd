"""Statistics of activations, gradients and weights that criteria gather during training."""

from lightning_prune.criteria.statistics.activation_averages import (
    COUNT,
    AbsoluteActivations,
    PositiveActivations,
    SquaredInputs,
    input_dim,
)
from lightning_prune.criteria.statistics.activation_gradient import ActivationGradient, channel_sums
from lightning_prune.criteria.statistics.block_changes import BlockChanges
from lightning_prune.criteria.statistics.initial_weights import InitialWeights
from lightning_prune.criteria.statistics.second_order import Curvature
from lightning_prune.criteria.statistics.statistics import Statistics
from lightning_prune.criteria.statistics.weight_gradients import GateGradients, MovementScores, WeightGradients

__all__ = [
    "COUNT",
    "AbsoluteActivations",
    "ActivationGradient",
    "BlockChanges",
    "Curvature",
    "GateGradients",
    "InitialWeights",
    "MovementScores",
    "PositiveActivations",
    "SquaredInputs",
    "Statistics",
    "WeightGradients",
    "channel_sums",
    "input_dim",
]
