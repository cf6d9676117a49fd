"""Methods of the benchmark that are not a criterion alone: other budgets, granularities and callbacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_prune import NM, Channels, IterativePruning, Regrowth, Scope, Weights
from lightning_prune.budgets import ERK, Ratio, Sparsity
from lightning_prune.callbacks import (
    Distillation,
    GroupLasso,
    GrowingPenalty,
    RecalibrateBatchNorm,
    Rewind,
    SlimmingPenalty,
    Supermask,
)
from lightning_prune.criteria import CRITERIA, BatchNormScale, Magnitude, Movement, Random
from lightning_prune.schedules import Constant, Cubic, Exponential, Linear, OneCycle, Rounds

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
        cycle: Epochs in which the learning rate rises and falls; None for all of the training.
    """

    granularity: str
    callbacks: Callable[[float], list[Any]]
    shares: tuple[float, ...]
    before: bool = False
    cycle: int | None = None


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


def _rewound(start: int, every: int, rewind: Rewind) -> Callable[[float], list[Any]]:
    """Events at the end of each cycle but the last of 16 epochs, after which ``rewind`` begins another."""
    end = max(range(start, 16, every))

    def callbacks(share: float) -> list[Any]:
        left = Exponential(start, end, every, left=1 - share)
        return [IterativePruning(left, Sparsity(share), granularity=Weights()), rewind]

    return callbacks


def _iterative(share: float) -> list[Any]:
    left = Exponential(0.0, 0.5, every=0.1, unit="share", left=1 - share)
    return [IterativePruning(left, Sparsity(share), granularity=Weights())]


def _per_layer(share: float) -> list[Any]:
    return [IterativePruning(gradually(), Sparsity(share, per_layer=True), granularity=Weights())]


def _one_cycle(share: float) -> list[Any]:
    return [IterativePruning(OneCycle(0.0, 0.95, every=0.025, unit="share"), Sparsity(share), granularity=Weights())]


def _moving(share: float) -> list[Any]:
    when = Cubic(0.2, 0.75, every=0.025, unit="share")
    return [IterativePruning(when, Sparsity(share), Movement(), Weights())]


def _distilled(share: float) -> list[Any]:
    return [IterativePruning(in_rounds(), Ratio(share, per_layer=False), Magnitude(), Channels()), Distillation()]


def _penalised(penalty: Callable[[], Any], criterion: Any) -> Callable[[float], list[Any]]:
    """Three quarters of 16 epochs under a penalty, then all at once.

    So few steps need a stronger one than in the papers. It was picked from up to four on the first two seeds.
    """
    when = Constant(0.75, "share")
    return lambda share: [penalty(), IterativePruning(when, Ratio(share, per_layer=False), criterion, Channels())]


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
    "iterative": Variant("weights", _iterative, SPARSITIES),
    "every layer alike": Variant("weights", _per_layer, SPARSITIES),
    "OneCycle": Variant("weights", _one_cycle, SPARSITIES, before=True),
    "lottery ticket": Variant("weights", _rewound(0, 4, Rewind("init")), SPARSITIES, before=True, cycle=4),
    "weight rewinding": Variant("weights", _rewound(1, 5, Rewind(1)), SPARSITIES, before=True, cycle=6),
    "LR rewinding": Variant("weights", _rewound(0, 4, Rewind(0, "step", "lr")), SPARSITIES, before=True, cycle=4),
    "Movement from the start": Variant("weights", _moving, SPARSITIES, before=True),
    "RigL": Variant("weights", _regrown(Regrowth(every=20)), SPARSITIES, before=True),
    "SET": Variant("weights", _regrown(Regrowth("random", every=18, end=0.95, anneal=False)), SPARSITIES, before=True),
    "Supermask": Variant("weights", lambda share: [Supermask(share)], SPARSITIES, before=True),
    "2:4": Variant("weights", lambda share: [IterativePruning(gradually(), granularity=NM(2, 4))], (0.5,)),
    "4 x 4 blocks": Variant("weights", _blocks, SPARSITIES),
    "Distillation": Variant("channels", _distilled, RATIOS),
    "SlimmingPenalty": Variant("channels", _penalised(lambda: SlimmingPenalty(0.03), BatchNormScale()), RATIOS, True),
    "GroupLasso": Variant("channels", _penalised(lambda: GroupLasso(0.002), Magnitude()), RATIOS, True),
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
