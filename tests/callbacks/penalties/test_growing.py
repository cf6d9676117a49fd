"""GrowingPenalty in a Trainer."""

from csv import DictReader
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.judged import Judged, guard, run
from helpers.training import STEPS, Events, Lit, fit, widths
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional as F

from lightning_prune import NM, Channels, IterativePruning, Scope, Weights
from lightning_prune.budgets import Budget, MACs, Ratio, Sparsity
from lightning_prune.callbacks import GrowingPenalty
from lightning_prune.granularity import Granularity
from lightning_prune.masks.select import unpack
from lightning_prune.schedules import Constant, Linear, Rounds

STEPWISE = Linear(2, 8, every=3, unit="step")  # half of the ceiling after 5 steps, all of it after 8
KINDS: list[tuple[Granularity, Budget]] = [(Channels(), Ratio(0.5)), (Weights(), Sparsity(0.5))]
EACH = pytest.mark.parametrize(("granularity", "budget"), KINDS, ids=["channels", "weights"])


def picked(penalty: GrowingPenalty, events: int = 0) -> dict[str, Tensor]:
    return unpack(penalty.state_dict()["picked"][events])


class InTheLoss(Lit):
    """Adds the penalty to the loss, for autograd."""

    def __init__(self, masks: dict[str, Tensor]) -> None:
        super().__init__(norm=False)
        self.masks = masks

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        factor = {0: 0.0, 1: 0.5, 2: 1.0}[max(0, min(2, (self.global_step - 2) // 3))] * 0.3
        squares = sum(self.get_parameter(name)[mask].square().sum() for name, mask in self.masks.items())
        return F.cross_entropy(self(batch[0]), batch[1]) + factor / 2 * squares


@EACH
@pytest.mark.parametrize("declared", [False, True])
def test_training_is_that_with_the_penalty_in_the_loss(
    tmp_path: Path, granularity: Granularity, budget: Budget, declared: bool
) -> None:
    torch.manual_seed(0)
    ours = Lit(norm=False)
    first = {name: value.clone() for name, value in ours.state_dict().items()}
    ours.example_input_array = torch.zeros(2, 2, 3, 4) if declared else None
    penalty = GrowingPenalty(STEPWISE, budget, granularity, ceiling=0.3)
    fit(tmp_path, ours, penalty, max_epochs=3)
    theirs = InTheLoss(picked(penalty))
    theirs.load_state_dict(first)
    fit(tmp_path, theirs, max_epochs=3)
    plain = Lit(norm=False)
    plain.load_state_dict(first)
    fit(tmp_path, plain, max_epochs=3)
    for (name, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6, msg=name)
    assert not torch.allclose(ours.net[3].weight, plain.net[3].weight, atol=1e-3)


def test_the_lowest_l1_norms_are_selected_when_the_penalty_begins(tmp_path: Path) -> None:
    """Over all weight matrices that are coupled to a unit; not at the start of the training."""
    norms: list[list[Tensor]] = []

    class Norms(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            one, two, head = (pl_module.net[index].weight.detach() for index in (0, 3, 8))
            for unit in (one[7], two[7], two[:, 7], head[:, 7]):
                unit.mul_({0: 3.0, 3: 1e-4}.get(trainer.global_step, 1.0))
            norms.append(
                [one.abs().sum((1, 2, 3)) + two.abs().sum((0, 2, 3)), two.abs().sum((1, 2, 3)) + head.abs().sum(0)]
            )

    penalty = GrowingPenalty(Linear(4, 8, every=1, unit="step"), Ratio(0.5))
    fit(tmp_path, Lit(norm=False), Norms(), penalty, max_epochs=2)
    masks = picked(penalty)
    for index, name in ((0, "net.0.bias"), (1, "net.3.bias")):
        lowest = sorted(norms[5][index].argsort()[:4].tolist())  # the first step whose λ is above 0 is the sixth
        assert masks[name].nonzero().flatten().tolist() == lowest
        assert 7 in lowest
        assert 7 not in norms[0][index].argsort()[:4], "else this test could not tell"


def test_the_strength_by_hand_and_in_the_log(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    strengths: list[float] = []

    class Seen(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            strengths.append(penalty._strength(trainer))

    penalty = GrowingPenalty(STEPWISE, Ratio(0.5), ceiling=0.2)
    lit = Lit(lr=0.0)  # the network stays as it is
    fit(tmp_path, lit, penalty, Seen(), max_epochs=3, logger=logger, log_every_n_steps=1)
    assert strengths == pytest.approx([0, 0, 0, 0, 0, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2])
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in DictReader(file) if row["penalty/growing"]]
    assert [float(row["penalty/growing_strength"]) for row in rows] == pytest.approx([0, 0.075, 0.2])
    squares = sum(float(lit.get_parameter(n).detach()[m].square().sum()) for n, m in picked(penalty).items())
    assert [float(row["penalty/growing"]) for row in rows] == pytest.approx([0, 0.0375 * squares, 0.1 * squares])


@pytest.mark.parametrize("norm", [False, True])
def test_selected_weights_shrink_and_are_removed(tmp_path: Path, norm: bool) -> None:
    torch.manual_seed(0)
    lit, events = Lit(norm=norm), Events()
    sizes: dict[str, tuple[float, float]] = {}

    class Sizes(Callback):
        def on_before_prune(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
            for name, mask in picked(penalty).items():
                weights = pl_module.get_parameter(name).detach()
                sizes[name] = float(weights[mask].abs().mean()), float(weights[~mask].abs().mean())

    penalty = GrowingPenalty(Linear(0, 80, every=5, unit="step"), Ratio(0.5))
    fit(tmp_path, lit, penalty, Sizes(), events, IterativePruning(Constant(30), Ratio(0.5)), max_epochs=31)
    assert widths(lit) == [4, 4, 3]
    for name, (gone, kept) in sizes.items():
        assert gone < 1e-2 * kept, name
    keep, masks = events.reports[0].plan.keep, picked(penalty)
    for name in ("net.0.bias", "net.3.bias"):
        assert masks[name].nonzero().flatten().tolist() == sorted(set(range(8)) - set(keep[name][0].tolist()))
    assert picked(penalty, 1) == {}


def test_removed_weights_leave_the_selection(tmp_path: Path) -> None:
    lit, penalty = Lit(norm=False), GrowingPenalty(Linear(0, 3), Ratio(0.5), ceiling=3.0)
    fit(tmp_path, lit, penalty, IterativePruning(Rounds(4, 1, 2), Ratio(0.5)), max_epochs=6)
    assert widths(lit) == [4, 4, 3]
    assert [int(picked(penalty, events)["net.0.bias"].sum()) for events in (0, 1)] == [4, 2]
    assert {name: tuple(mask.shape) for name, mask in picked(penalty, 1).items()} == {
        "net.0.weight": (6, 2, 3, 3), "net.0.bias": (6,), "net.3.weight": (6, 6, 3, 3), "net.3.bias": (6,),
        "net.8.weight": (3, 6),
    }  # fmt: skip
    assert picked(penalty, 2) == {}


def test_a_rollback_restores_the_selection(tmp_path: Path) -> None:
    module, pruning = Judged([0.9, 0.9, 0.9, 0.5, 0.9]), IterativePruning(Rounds(2, 2, 2), Ratio(0.5))
    penalty = GrowingPenalty(Linear(0, 2), Ratio(0.5))
    at_hand: list[tuple[int, int]] = []
    forgotten: list[bool] = []

    class AtHand(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            mask = (penalty._current or {}).get("net.0.bias")
            at_hand.append((pl_module.net[0].out_channels, 0 if mask is None else int(mask.sum())))

        def on_rollback(self, *_: Any) -> None:
            forgotten.append(penalty._current is None)  # it had the shapes of the smaller network

    run(tmp_path, module, penalty, AtHand(), pruning, guard(retry=1), epochs=6)
    assert at_hand[::STEPS] == [(8, 0), (8, 4), (6, 2), (6, 2), (7, 3), (7, 3)]
    assert forgotten == [True]


def test_another_fit_of_the_same_network_keeps_the_selection(tmp_path: Path) -> None:
    lit, penalty, pruning = Lit(), GrowingPenalty(Linear(0, 1), Ratio(0.5)), IterativePruning(Constant(2), Ratio(0.5))
    fit(tmp_path, lit, penalty, pruning, max_epochs=3)
    fit(tmp_path, lit, penalty, pruning, max_epochs=3)
    assert widths(lit) == [4, 4, 3]
    assert penalty.state_dict()["picked"][1] == {}  # nothing is picked of what is left
    fresh = GrowingPenalty(Linear(0, 1), Ratio(0.5))
    for unit in (0, 1):  # a callback that has seen no event begins anew with the next network
        other = Lit()
        with torch.no_grad():
            other.net[0].weight[unit] = other.net[3].weight[:, unit] = 0
            other.net[0].weight[1 - unit] = 9
        fit(tmp_path, other, fresh, max_epochs=2)
        assert picked(fresh)["net.0.bias"][:2].tolist() == [unit == 0, unit == 1]


def test_only_the_scope(tmp_path: Path) -> None:
    penalty = GrowingPenalty(Linear(0, 1), Ratio(0.5), scope=Scope(include=["net.3"]))
    fit(tmp_path, Lit(), penalty, max_epochs=2)
    assert {name for name in picked(penalty) if name.endswith("weight")} == {
        "net.3.weight",
        "net.4.weight",
        "net.8.weight",
    }


def test_n_of_m_is_its_own_budget(tmp_path: Path) -> None:
    lit, penalty = Lit(), GrowingPenalty(Constant(0), granularity=NM(1, 4), scope=Scope(include=["net.8"]))
    largest = lit.net[8].weight.detach().abs().view(3, 2, 4).argmax(-1)  # 3 classes by 8 inputs: two blocks each
    fit(tmp_path, lit, penalty, max_epochs=1)
    stay = ~picked(penalty)["net.8.weight"].view(3, 2, 4)
    assert torch.equal(stay, F.one_hot(largest, 4).bool())


# ---- what is refused


@pytest.mark.parametrize("ceiling", [0, -1, float("nan"), float("inf"), True, "high"])
def test_ceilings_out_of_range(ceiling: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"GrowingPenalty ceiling=.* must be a finite number above 0"):
        GrowingPenalty(STEPWISE, Ratio(0.5), ceiling=ceiling)


def test_arguments_of_another_kind() -> None:
    with pytest.raises(MisconfigurationException, match=r"GrowingPenalty budget=0.5 is not a Budget"):
        GrowingPenalty(STEPWISE, 0.5)  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationException, match=r"GrowingPenalty budget=None is not a Budget"):
        GrowingPenalty(STEPWISE)
    with pytest.raises(MisconfigurationException, match=r"budget=Ratio.* cannot be used: NM\(n=2, m=4\)"):
        GrowingPenalty(STEPWISE, Ratio(0.9), NM(2, 4))
    with pytest.raises(MisconfigurationException, match=r"use Sparsity or Count"):
        GrowingPenalty(STEPWISE, MACs(keep=0.5), Weights())


def test_a_network_without_prunable_units_is_refused_before_training(tmp_path: Path) -> None:
    lit = Lit(width=1)
    with pytest.raises(MisconfigurationException):
        fit(tmp_path, lit, GrowingPenalty(Linear(50, 60), Ratio(0.5)), max_epochs=1)
    assert not lit.losses


def test_shards_are_refused(tmp_path: Path) -> None:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class ModelParallelStrategy(SingleDeviceStrategy):
        """A stand-in; only its name is used."""

    with pytest.raises(MisconfigurationException, match="GrowingPenalty needs whole parameters"):
        fit(tmp_path, Lit(), GrowingPenalty(STEPWISE, Ratio(0.5)), strategy=ModelParallelStrategy())
