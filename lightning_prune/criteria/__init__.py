"""Criteria: what matters. A higher score survives."""

from lightning_prune.criteria.base import CannotScoreError, Criterion, Scoring
from lightning_prune.criteria.batchnorm import BatchNormScale
from lightning_prune.criteria.magnitude import Magnitude
from lightning_prune.criteria.random import Random
from lightning_prune.criteria.taylor import Taylor

__all__ = ["BatchNormScale", "CannotScoreError", "Criterion", "Magnitude", "Random", "Scoring", "Taylor"]
