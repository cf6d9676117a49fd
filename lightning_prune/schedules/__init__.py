"""Schedules: how far pruning has gone at a given time.

A schedule answers with a fraction in [0, 1]: 0 is the dense network, 1 is the budget. It has no state, never
decreases, and stays at 1 from its end on.
"""

from lightning_prune.schedules.constant import Constant
from lightning_prune.schedules.ramps import Cosine, Cubic, Exponential, Linear, OneCycle
from lightning_prune.schedules.rounds import Rounds
from lightning_prune.schedules.schedule import Schedule
from lightning_prune.schedules.steps import Steps

__all__ = ["Constant", "Cosine", "Cubic", "Exponential", "Linear", "OneCycle", "Rounds", "Schedule", "Steps"]
