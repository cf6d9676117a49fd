"""Masks that change in a training (RigL, SET), and masks by block."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import STEPS, Adversaries, Events, Lit, fit, trainer_for, zero_share
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_prune import NM, IterativePruning, Regrowth, SparsityLogger, Weights
from lightning_prune.budgets import ERK, Sparsity
from lightning_prune.criteria import Random
from lightning_prune.schedules import Constant, Cubic

EMA: Any = getattr(lightning_callbacks, "EMAWeightAveraging", None)


def dynamic(regrowth: Regrowth, budget: Any = ERK(0.6), schedule: Any = Constant(0)) -> IterativePruning:  # noqa: B008
    return IterativePruning(schedule, budget, Random(), Weights(regrow=regrowth))


class Probe(Callback):
    """Precedes the pruner, and records weights, dense gradients and masks before each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, dict[str, Tensor]]] = []
        self.counts: list[int] = []
        self.zeros: list[float] = []
        self.state: list[int] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        pruner = next(c for c in trainer.callbacks if isinstance(c, IterativePruning)).pruner
        named = dict(pl_module.named_parameters())
        self.steps.append({
            "weights": {name: named[name].detach().clone() for name in pruner.masks},
            "gradients": {name: named[name].grad.clone() for name in pruner.masks},
            "masks": dict(pruner.masks),
        })  # fmt: skip

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pruner = next(c for c in trainer.callbacks if isinstance(c, IterativePruning)).pruner
        named = dict(pl_module.named_parameters())
        self.zeros.append(zero_share(pl_module))
        states = [(mask, trainer.optimizers[0].state[named[name]]) for name, mask in pruner.masks.items()]
        self.state.append(sum(int(value[~m].count_nonzero()) for m, s in states for value in s.values()
                              if isinstance(value, Tensor) and value.shape == m.shape))  # fmt: skip
        assert not any(named[name].detach()[~mask].any() for name, mask in pruner.masks.items())

    def on_regrow(self, trainer: Trainer, pl_module: LightningModule, count: int) -> None:
        self.counts.append(count)


def expected(step: dict[str, dict[str, Tensor]], share: float) -> dict[str, Tensor]:
    """Evci et al. 2020, algorithm 1, with sorting in place of thresholds."""
    masks = {}
    for name, mask in step["masks"].items():
        count = min(round(share * int(mask.sum())), int((~mask).sum()))
        weight = step["weights"][name].abs().masked_fill(~mask, torch.inf).flatten()
        left = mask.flatten().clone()
        left[weight.argsort(stable=True)[:count]] = False
        gradient = step["gradients"][name].abs().flatten().masked_fill(left, -1.0)
        best = gradient.flip(0).argsort(descending=True, stable=True)[:count]  # of equal ones the last come back
        left[len(left) - 1 - best] = True
        masks[name] = left.view(mask.shape)
    return masks


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd"},
        {"optimizer": "adamw"},
        {"gradient_clip_val": 0.1},
        {"accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
    ],
    ids=str,
)
def test_weights_are_regrown_by_their_dense_gradients(tmp_path, options) -> None:
    """RigL: every four optimizer steps, during three quarters of the training."""
    optimizer = options.pop("optimizer", "sgd")
    torch.manual_seed(0)
    lit, probe, regrowth = Lit(optimizer=optimizer), Probe(), Regrowth(every=4, share=0.3, end=0.75)
    fit(tmp_path, lit, probe, dynamic(regrowth), max_epochs=8, **options)
    per_epoch = STEPS // options.get("accumulate_grad_batches", 1)
    total = 8 * per_epoch
    assert len(probe.steps) == total
    changes = []
    for number, (now, later) in enumerate(pairwise(probe.steps)):
        due = number % 4 == 0 and 0 < number < 0.75 * total
        epoch, batch = divmod(number, per_epoch)
        done = (epoch + ((batch + 1) * STEPS // per_epoch - 1) / STEPS) / 8
        masks = expected(now, regrowth.share_at(done)) if due else now["masks"]
        assert all(torch.equal(later["masks"][name], masks[name]) for name in masks), number
        changes += [sum(int((masks[name] & ~now["masks"][name]).sum()) for name in masks)] if due else []
    assert probe.counts == changes
    assert len(changes) == (5 if per_epoch == STEPS else 2)
    assert len(set(probe.zeros[-STEPS:])) == 1
    assert probe.zeros[-1] == pytest.approx(0.6, abs=0.01)
    assert set(probe.state) == {0}


def test_new_weights_begin_at_zero_and_learn(tmp_path) -> None:
    torch.manual_seed(0)
    lit, probe = Lit(), Probe()
    fit(tmp_path, lit, probe, dynamic(Regrowth(every=4, share=0.5, anneal=False)), max_epochs=3)
    before, after = probe.steps[4], probe.steps[5]
    for name, mask in after["masks"].items():
        new = mask & ~before["masks"][name]
        assert new.any() or mask.all()
        step = -0.05 * 0.9 * (before["gradients"][name] + 1e-3 * before["weights"][name])  # nothing of momentum
        assert torch.allclose(after["weights"][name][new], step[new])


def test_random_regrowth_is_the_same_in_every_run_and_differs_by_turn(tmp_path) -> None:
    """SET."""
    probes = [Probe(), Probe()]
    for probe in probes:
        torch.manual_seed(0)
        regrowth = Regrowth("random", every=STEPS, anneal=False, end=1.0)
        fit(tmp_path, Lit(), probe, dynamic(regrowth), max_epochs=4)
    first, second = [[step["masks"]["net.3.weight"] for step in probe.steps] for probe in probes]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    changed = [i for i, (a, b) in enumerate(pairwise(first)) if not torch.equal(a, b)]
    assert changed == [4, 8, 12]
    new = [first[i + 1] & ~first[i] for i in changed]
    assert not torch.equal(new[0], new[1])
    assert {int(mask.sum()) for mask in first} == {int(first[0].sum())}


def test_pruned_weights_can_regrow(tmp_path) -> None:
    """With a schedule: sparsity grows, and masked weights may regrow."""
    torch.manual_seed(0)
    lit, probe, events = Lit(), Probe(), Events()
    pruning = dynamic(Regrowth(every=3), Sparsity(0.8), Cubic(0, 6))
    fit(tmp_path, lit, probe, events, pruning, max_epochs=8)
    assert [round(report.sparsity, 4) for report in events.reports] == sorted(
        round(report.sparsity, 4) for report in events.reports
    )
    assert pruning.sparsity == pytest.approx(0.8, abs=1e-3)
    assert zero_share(lit) == pytest.approx(0.8, abs=1e-3)
    ever = torch.stack([~step["masks"]["net.3.weight"] for step in probe.steps if step["masks"]]).any(0)
    assert (ever & probe.steps[-1]["masks"]["net.3.weight"]).any()


def test_a_second_fit_regrows_from_its_own_beginning(tmp_path) -> None:
    torch.manual_seed(0)
    lit, pruning, counts = Lit(), dynamic(Regrowth(every=4, end=1.0)), []
    for _ in range(2):
        probe = Probe()
        fit(tmp_path, lit, probe, pruning, max_epochs=3)
        counts.append(len(probe.counts))
    assert counts == [2, 2]


def test_best_networks_are_tracked_through(tmp_path) -> None:
    """The size of the network does not change: unlike after a pruning event, best scores are kept."""
    torch.manual_seed(0)
    save = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", save_top_k=1)
    probe = Probe()
    trainer = fit(tmp_path, Lit(), probe, dynamic(Regrowth(every=4)), save, max_epochs=6)
    assert len(probe.counts) == 4
    assert save.best_model_score == min(float(torch.load(save.best_model_path)["callbacks"][save.state_key][
        "best_model_score"]), float(trainer.callback_metrics["val_loss"]))  # fmt: skip


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.skipif(EMA is None, reason="this version of Lightning has no EMA")
def test_averages_have_the_same_zeros(tmp_path, first) -> None:
    torch.manual_seed(0)
    lit, ema, pruning = Lit(), EMA(decay=0.5), dynamic(Regrowth(every=4, end=1.0))
    fit(tmp_path, lit, *([ema, pruning] if first else [pruning, ema]), max_epochs=5)
    averaged = dict(ema._average_model.module.named_parameters())
    for name, mask in pruning.pruner.masks.items():
        assert not averaged[name][~mask].any()
        assert averaged[name][mask].all()


def test_every_optimizer_exchanges_its_weights(tmp_path) -> None:
    torch.manual_seed(0)
    lit, pruning = Adversaries(), dynamic(Regrowth(every=4, end=1.0), Sparsity(0.5))
    first: dict[str, Tensor] = {}

    class First(Callback):
        def on_prune(self, trainer: Any, pl_module: Any, plan: Any, report: Any) -> None:
            first.update(plan.masks)

    fit(tmp_path, lit, pruning, First(), max_epochs=3)
    assert all(not torch.equal(mask, first[name]) for name, mask in pruning.pruner.masks.items())
    assert pruning.pruner.masks.keys() == first.keys()
    assert sum(int((~mask).sum()) for mask in pruning.pruner.masks.values()) == sum(
        int((~mask).sum()) for mask in first.values()
    )
    assert min(lit.after_step) == 0.5


class Overflow(Callback):
    """Makes one gradient infinite in one step, as under a GradScaler, which then skips the step."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 4:
            pl_module.net[0].weight.grad[0, 0, 0, 0] = torch.inf


class Seen(Callback):
    """Follows the pruner, records when weights regrow, and removes infinite gradients."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_regrow(self, trainer: Trainer, pl_module: LightningModule, count: int) -> None:
        self.steps.append(trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        pl_module.net[0].weight.grad.nan_to_num_(0.0, 0.0, 0.0)


def test_an_exchange_waits_for_finite_gradients(tmp_path) -> None:
    torch.manual_seed(0)
    seen = Seen()
    fit(tmp_path, Lit(), Overflow(), dynamic(Regrowth(every=4, end=1.0)), seen, max_epochs=4)
    assert seen.steps == [5, 8, 12]


def test_it_is_logged(tmp_path) -> None:
    torch.manual_seed(0)
    probe, logger = Probe(), CSVLogger(tmp_path)
    fit(tmp_path, Lit(), probe, dynamic(Regrowth(every=4)), SparsityLogger(), logger=logger, max_epochs=4)
    rows = (line.split(",") for line in Path(logger.log_dir, "metrics.csv").read_text().splitlines())
    column = next(rows).index("pruning/regrown")
    assert [int(float(row[column])) for row in rows if row[column]] == probe.counts


def test_a_training_without_an_end_is_refused(tmp_path) -> None:
    with pytest.raises(MisconfigurationException, match="ends at a share of the training, whose length is not limited"):
        trainer_for(tmp_path, dynamic(Regrowth()), max_epochs=-1).fit(Lit())


def test_blocks_hold_in_a_training(tmp_path) -> None:
    torch.manual_seed(0)
    lit, events = Lit(optimizer="adamw"), Events()
    pruning = IterativePruning(Cubic(1, 4), granularity=NM(2, 4))
    fit(tmp_path, lit, events, pruning, max_epochs=6)
    for layer in (lit.net[3], lit.net[8]):
        assert (layer.weight != 0).movedim(1, -1).reshape(-1, 4).sum(-1).eq(2).all()
    assert lit.net[0].weight.all()
    assert events.reports[-1].frozen == {"net.0.weight": "its 2 inputs are not a multiple of 4"}
    assert [report.sparsity for report in events.reports] == [0.25, 0.5]  # one block of four loses one, then two
    with pytest.raises(MisconfigurationException, match=r"NM\(n=2, m=4\) determines the sparsity; omit"):
        IterativePruning(Constant(1), Sparsity(0.5), granularity=NM())
    with pytest.raises(MisconfigurationException, match="budget=None is not a Budget"):
        IterativePruning(Constant(1))
