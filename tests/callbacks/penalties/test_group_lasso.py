"""GroupLasso in a Trainer."""

from csv import DictReader
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import STEPS, Lit, fit, widths
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional as F

from lightning_prune import IterativePruning, Scope, SlimmingPenalty
from lightning_prune.budgets import Ratio
from lightning_prune.callbacks import GroupLasso
from lightning_prune.coupling import find_coupling
from lightning_prune.network.example_input import Example
from lightning_prune.network.tensors import named_tensors
from lightning_prune.penalties import unit_norms
from lightning_prune.schedules import Constant, Linear

EXAMPLE = Example.of(torch.zeros(2, 2, 3, 4))


def norms(lit: Lit) -> dict[str, Tensor]:
    groups = find_coupling(lit, EXAMPLE).groups
    return {name: unit_norms(group, dict(named_tensors(lit))) for name, group in groups.items()}


class InTheLoss(Lit):
    """Adds the penalty to the loss, for autograd."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        own = dict(named_tensors(self))
        for group in find_coupling(self, EXAMPLE).groups.values():
            squares, count = 0.0, 0
            for member in group.members:
                if own[member.tensor].requires_grad:
                    rows = own[member.tensor].movedim(member.dim, 0)
                    rows = rows.reshape(len(rows), -1)
                    squares = squares + rows.square().sum(1)[member.index].sum(1)
                    count += rows.shape[1] * member.index.shape[1]
            loss = loss + 0.01 * count**0.5 * squares.sqrt().sum()
        return loss


@pytest.mark.parametrize("declared", [False, True])
def test_training_is_that_with_the_penalty_in_the_loss(tmp_path: Path, declared: bool) -> None:
    torch.manual_seed(0)
    ours = Lit()
    theirs = InTheLoss()
    theirs.load_state_dict(ours.state_dict())
    ours.example_input_array = torch.zeros(2, 2, 3, 4) if declared else None
    fit(tmp_path, ours, GroupLasso(0.01), max_epochs=2)
    fit(tmp_path, theirs, max_epochs=2)
    for (name, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5, msg=name)


def test_units_become_small_together_and_cost_less_to_remove(tmp_path: Path) -> None:
    found = {}
    for strength in (0.0, 0.002):
        torch.manual_seed(0)
        lit = Lit(norm=False)
        fit(tmp_path, lit, GroupLasso(strength), max_epochs=40)
        found[strength] = norms(lit)
    for name, plain in found[0.0].items():
        lowest = slice(0, len(plain) // 2)
        share = {s: float(v[name].sort().values[lowest].sum() / v[name].sum()) for s, v in found.items()}
        assert share[0.002] < share[0.0] - 0.02, name


def test_groups_are_updated_after_events(tmp_path: Path) -> None:
    lit, penalty = Lit(), GroupLasso(0.01)
    fit(tmp_path, lit, penalty, IterativePruning(Constant(1), Ratio(0.5)), max_epochs=3)
    assert widths(lit) == [4, 4, 3]
    assert {group.size for group in penalty._groups} == {4}


@pytest.mark.parametrize(("make", "name"), [(GroupLasso, "group_lasso"), (SlimmingPenalty, "slimming")])
def test_the_strength_follows_its_schedule_and_is_logged(tmp_path: Path, make: Any, name: str) -> None:
    logger = CSVLogger(tmp_path)
    lit = Lit(lr=0.0)  # the network stays, so the penalty is the strength
    fit(tmp_path, lit, make(0.01, Linear(1, 3)), max_epochs=5, logger=logger, log_every_n_steps=1)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        logged = [float(row[f"penalty/{name}"]) for row in DictReader(file) if row[f"penalty/{name}"]]
    assert logged[0] == logged[1] == 0
    assert logged[3] > 0
    assert [value / logged[3] for value in logged] == pytest.approx([0, 0, 0.5, 1, 1])


def test_only_the_scope_is_penalized(tmp_path: Path) -> None:
    plain, lit = Lit(norm=False), Lit(norm=False)
    lit.load_state_dict(plain.state_dict())
    fit(tmp_path, plain, max_epochs=1, limit_train_batches=1)
    fit(tmp_path, lit, GroupLasso(0.1, scope=Scope(include=["net.0"])), max_epochs=1, limit_train_batches=1)
    changed = {n for n, p in lit.named_parameters() if not torch.equal(p, plain.get_parameter(n))}
    assert changed == {"net.0.weight", "net.0.bias", "net.3.weight"}  # the last reads the channels


@pytest.mark.parametrize("strength", [-1, float("nan"), "much", True])
def test_strengths_out_of_range(strength: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"GroupLasso strength=.* must be a finite number of at"):
        GroupLasso(strength)


def test_a_frozen_network(tmp_path: Path) -> None:
    lit = Lit()
    for parameter in lit.net[:6].parameters():
        parameter.requires_grad_(False)
    with pytest.raises(MisconfigurationException, match="nothing to penalize: all weights in its scope are frozen"):
        fit(tmp_path, lit, GroupLasso(scope=Scope(include=["net.0"])), max_epochs=1)
    assert len(lit.losses) < STEPS


def test_a_network_without_removable_units_continues_to_train(tmp_path: Path) -> None:
    lit = Lit(width=2)
    with pytest.warns(UserWarning, match="GroupLasso has no more weights to penalize"):
        fit(tmp_path, lit, GroupLasso(0.01), IterativePruning(Constant(1), Ratio(0.5)), max_epochs=3)
    assert widths(lit) == [1, 1, 3]
    assert len(lit.losses) == 3 * STEPS
    with pytest.warns(UserWarning, match="GroupLasso has no more weights to penalize"):
        fit(tmp_path, lit, GroupLasso(0.01), max_epochs=1)
