"""Methods of the benchmark that are not a criterion alone: other budgets, granularities and callbacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_prune import NM, Channels, IterativePruning, Regrowth, Scope, Weights
from lightning_prune.budgets import ERK, Ratio, Sparsity
from lightning_prune.callbacks import GrowingPenalty, RecalibrateBatchNorm, Supermask
from lightning_prune.criteria import CRITERIA, Magnitude, Random
from lightning_prune.schedules import Constant, Cubic, Linear, Rounds

SPARSITIES = (0.6, 0.8, 0.9)
RATIOS = (0.5, 0.7)
BLOCK_RATIOS = (3 / 7, 5 / 7)  # of the blocks that can go
HEAD_RATIOS = (0.5, 0.75)


@dataclass(frozen=True)
class Variant:
    """One method.

    Attributes:
        granularity: ``"weights"``, ``"channels"`` or ``"heads"``.
        callbacks: From the share removed to what does it.
        shares: Where it is measured.
        before: Whether it starts from the initial weights.
    """

    granularity: str
    callbacks: Callable[[float], list[Any]]
    shares: tuple[float, ...]
    before: bool = False


def gradually() -> Cubic:
    """The schedule of all criteria for weights."""
    return Cubic(0.0, 0.5, every=0.05, unit="share")


def in_rounds() -> Rounds:
    """The schedule of all criteria for channels."""
    return Rounds(0.1, every=0.1, count=4, unit="share")


def _regrown(regrowth: Regrowth) -> Callable[[float], list[Any]]:
    return lambda share: [IterativePruning(Constant(0), ERK(share), Random(), Weights(regrow=regrowth))]


def _growing(share: float) -> list[Any]:
    budget = Ratio(share, per_layer=False)
    growing = GrowingPenalty(Linear(0.0, 0.45, every=0.01, unit="share"), budget)
    return [IterativePruning(Constant(0.5, "share"), budget, Magnitude(), Channels()), growing]


def _isomorphic(share: float) -> list[Any]:
    budget = Ratio(share, per_layer=False)
    return [IterativePruning(in_rounds(), budget, Magnitude(), Channels(ranking="isomorphic"))]


def _heads(criterion: str) -> Callable[[float], list[Any]]:
    (named,) = (cls for cls in CRITERIA if cls.__name__ == criterion)
    attention = Channels(attention="heads"), Scope(include=["*.attention.qkv"])
    return lambda share: [IterativePruning(in_rounds(), Ratio(share, per_layer=False), named(), *attention)]


def _blocks(share: float) -> list[Any]:
    return [IterativePruning(gradually(), Sparsity(share), granularity=Weights(block=(4, 4)))]


def _recalibrated(share: float) -> list[Any]:
    budget = Ratio(share, per_layer=False)
    return [IterativePruning(in_rounds(), budget, Magnitude(), Channels()), RecalibrateBatchNorm(18)]


def _erk(share: float) -> list[Any]:
    return [IterativePruning(gradually(), ERK(share), granularity=Weights())]


VARIANTS = {
    "ERK": Variant("weights", _erk, SPARSITIES),
    "RigL": Variant("weights", _regrown(Regrowth(every=20)), SPARSITIES, before=True),
    "SET": Variant("weights", _regrown(Regrowth("random", every=18, end=0.95, anneal=False)), SPARSITIES, before=True),
    "Supermask": Variant("weights", lambda share: [Supermask(share)], SPARSITIES, before=True),
    "2:4": Variant("weights", lambda share: [IterativePruning(gradually(), granularity=NM(2, 4))], (0.5,)),
    "4 x 4 blocks": Variant("weights", _blocks, SPARSITIES),
    "GrowingPenalty": Variant("channels", _growing, RATIOS),
    "RecalibrateBatchNorm": Variant("channels", _recalibrated, RATIOS),
    "isomorphic": Variant("channels", _isomorphic, RATIOS),
    "heads by Taylor": Variant("heads", _heads("Taylor"), HEAD_RATIOS),
    "heads by WeightTaylor": Variant("heads", _heads("WeightTaylor"), HEAD_RATIOS),
    "heads by Fisher": Variant("heads", _heads("Fisher"), HEAD_RATIOS),
    "heads by Movement": Variant("heads", _heads("Movement"), HEAD_RATIOS),
    "heads by Magnitude": Variant("heads", _heads("Magnitude"), HEAD_RATIOS),
    "heads at random": Variant("heads", _heads("Random"), HEAD_RATIOS),
}  # fmt: skip
