"""Schedules: the fraction of the budget that is reached at a given time of the training.

A schedule maps a time to a fraction in [0, 1]: 0 is the dense network, 1 is the budget. It has no state, never
decreases, and is 1 from its end on.
"""

from lightning_prune.schedules.constant import Constant
from lightning_prune.schedules.ramps import Cosine, Cubic, Exponential, Linear, OneCycle
from lightning_prune.schedules.rounds import Rounds
from lightning_prune.schedules.schedule import Schedule
from lightning_prune.schedules.steps import Steps

__all__ = ["Constant", "Cosine", "Cubic", "Exponential", "Linear", "OneCycle", "Rounds", "Schedule", "Steps"]
