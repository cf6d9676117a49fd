"""The symbolic values of a traced pass: channel ids, sizes as expressions of widths, and proportions.

Imports nothing else of ``lightning_prune.coupling``.
"""

from lightning_prune.coupling.symbols.channel_ids import NO_CHANNEL, ChannelIds, Ids, Reason, Reasons
from lightning_prune.coupling.symbols.constants import Constants
from lightning_prune.coupling.symbols.proportions import Factors, Proportion, Scalar, Scalars
from lightning_prune.coupling.symbols.sizes import Attribute, Equation, Expression, LinearDim, SizeOf
from lightning_prune.coupling.symbols.traced_ints import SizeEquations, TracedInt

__all__ = [
    "NO_CHANNEL",
    "Attribute",
    "ChannelIds",
    "Constants",
    "Equation",
    "Expression",
    "Factors",
    "Ids",
    "LinearDim",
    "Proportion",
    "Reason",
    "Reasons",
    "Scalar",
    "Scalars",
    "SizeEquations",
    "SizeOf",
    "TracedInt",
]
