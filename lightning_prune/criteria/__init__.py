"""Saliency criteria: a score for every channel, weight or block; the lowest scores are removed."""

from lightning_prune.criteria.activations import APoZ, MeanActivation
from lightning_prune.criteria.batchnorm import BatchNormScale
from lightning_prune.criteria.block_influence import BlockInfluence
from lightning_prune.criteria.by_name import CRITERIA, criterion_named
from lightning_prune.criteria.criterion import CannotScoreError, Criterion, Scoring
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

__all__ = [
    "CRITERIA",
    "LAMP",
    "SNIP",
    "APoZ",
    "BatchNormScale",
    "BlockInfluence",
    "CannotScoreError",
    "Criterion",
    "Fisher",
    "GateTaylor",
    "GeometricMedian",
    "GraSP",
    "Hessian",
    "Magnitude",
    "MagnitudeIncrease",
    "MeanActivation",
    "Movement",
    "Random",
    "Scoring",
    "Sensitivity",
    "SynFlow",
    "Taylor",
    "Wanda",
    "WeightTaylor",
    "criterion_named",
]
