"""What criteria need gathered during training."""

from lightning_prune.statistics.activation_gradient import ActivationGradient, channel_sums
from lightning_prune.statistics.activations import (
    COUNT,
    AbsoluteActivations,
    PositiveActivations,
    SquaredInputs,
    input_dim,
)
from lightning_prune.statistics.base import Statistics
from lightning_prune.statistics.blocks import BlockChanges
from lightning_prune.statistics.curvature import Curvature
from lightning_prune.statistics.gradients import GateGradients, MovementScores, WeightGradients
from lightning_prune.statistics.initial import InitialWeights

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
