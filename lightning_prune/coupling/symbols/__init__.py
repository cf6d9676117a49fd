"""Symbolic values of a traced pass: channel ids, sizes as expressions of widths, and proportions."""

from lightning_prune.coupling.symbols.channel_ids import Ids, Reason, Reasons, Slots
from lightning_prune.coupling.symbols.constants import Constants
from lightning_prune.coupling.symbols.proportions import Factors, Proportion, Scalar, Scalars
from lightning_prune.coupling.symbols.sizes import (
    Attribute,
    Equation,
    Expression,
    LinearDim,
    Number,
    SizeEquations,
    SizeOf,
)

__all__ = [
    "Attribute",
    "Constants",
    "Equation",
    "Expression",
    "Factors",
    "Ids",
    "LinearDim",
    "Number",
    "Proportion",
    "Reason",
    "Reasons",
    "Scalar",
    "Scalars",
    "SizeEquations",
    "SizeOf",
    "Slots",
]
