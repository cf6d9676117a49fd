"""All criteria, and the lookup of one by its name."""

from __future__ import annotations

from difflib import get_close_matches

from lightning_prune.criteria.activations import APoZ, MeanActivation
from lightning_prune.criteria.batchnorm import BatchNormScale
from lightning_prune.criteria.block_influence import BlockInfluence
from lightning_prune.criteria.criterion import Criterion
from lightning_prune.criteria.curvature import Fisher, GraSP, Hessian
from lightning_prune.criteria.geometric_median import GeometricMedian
from lightning_prune.criteria.gradients import SNIP, GateTaylor, Movement, WeightTaylor
from lightning_prune.criteria.initial import MagnitudeIncrease
from lightning_prune.criteria.lamp import LAMP
from lightning_prune.criteria.magnitude import Magnitude
from lightning_prune.criteria.random import Random
from lightning_prune.criteria.sensitivity import Sensitivity
from lightning_prune.criteria.synflow import SynFlow
from lightning_prune.criteria.taylor import Taylor
from lightning_prune.criteria.wanda import Wanda

CRITERIA: tuple[type[Criterion], ...] = (
    APoZ, BatchNormScale, BlockInfluence, Fisher, GateTaylor, GeometricMedian, GraSP, Hessian, LAMP, Magnitude,
    MagnitudeIncrease, MeanActivation, Movement, Random, SNIP, Sensitivity, SynFlow, Taylor, Wanda, WeightTaylor,
)  # fmt: skip


def criterion_named(name: str) -> Criterion:
    """The criterion with this class name, in upper or lower case, with its default arguments.

    Raises:
        ValueError: If no criterion has this name.

    Example:
        >>> criterion_named("taylor")
        Taylor(every_n_steps=1)
    """
    known = {cls.__name__.lower(): cls for cls in CRITERIA}
    if name.lower() not in known:
        near = get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {known[near[0]].__name__!r}?" if near else "use one of"
        names = ", ".join(sorted(cls.__name__ for cls in known.values()))
        raise ValueError(f"criterion={name!r} is not known; {hint} ({names})")
    return known[name.lower()]()
