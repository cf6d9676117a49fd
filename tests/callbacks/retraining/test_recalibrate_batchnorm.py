"""Batch norms after surgery."""

import re

import pytest
import torch
from helpers.judged import guard
from helpers.residual import LitResidual
from helpers.training import STEPS, Lit, fit, trainer_for
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_prune import Blocks, IterativePruning
from lightning_prune.budgets import Count, Ratio
from lightning_prune.callbacks import RecalibrateBatchNorm
from lightning_prune.criteria import BlockInfluence
from lightning_prune.schedules import Constant, Rounds


class Inputs(Callback):
    """Notes the batch mean and variance that reach the second batch norm in every training batch."""

    def __init__(self) -> None:
        self.means: list[torch.Tensor] = []
        self.variances: list[torch.Tensor] = []
        self.momenta: list[float | None] = []

    def on_train_batch_start(self, trainer, pl_module, *_) -> None:
        def look(module, args) -> None:
            self.means.append(args[0].detach().mean((0, 2, 3)))
            self.variances.append(args[0].detach().transpose(0, 1).flatten(1).var(1))

        self.handle = pl_module.net[4].register_forward_pre_hook(look)

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.handle.remove()
        self.momenta.append(pl_module.net[4].momentum)


def test_statistics_are_the_mean_of_the_batches_after_the_event(tmp_path) -> None:
    torch.manual_seed(0)
    lit, seen = Lit(), Inputs()
    fit(tmp_path, lit, IterativePruning(Constant(1), Ratio(0.5)), RecalibrateBatchNorm(STEPS), seen, max_epochs=2)
    means, variances = torch.stack(seen.means[STEPS:]), torch.stack(seen.variances[STEPS:])
    assert means.shape == (STEPS, 4)
    assert torch.allclose(lit.net[4].running_mean, means.mean(0), atol=1e-6)
    assert torch.allclose(lit.net[4].running_var, variances.mean(0), rtol=1e-5)
    assert seen.momenta == [0.1] * STEPS + [None] * (STEPS - 1) + [0.1]  # the last batch ends it


def test_then_the_momentum_is_as_before(tmp_path) -> None:
    torch.manual_seed(0)
    lit, seen = Lit(), Inputs()
    lit.net[4].momentum = 0.3
    fit(tmp_path, lit, IterativePruning(Rounds(1, 1, 2), Ratio(0.5)), RecalibrateBatchNorm(6), seen, max_epochs=4)
    assert seen.momenta == [0.3] * 4 + [None] * 4 + [None] * 5 + [0.3] * 3
    assert lit.net[4].momentum == 0.3
    assert lit.net[1].momentum == 0.1


def test_a_training_that_ends_early_gives_it_back(tmp_path) -> None:
    lit = Lit()
    fit(tmp_path, lit, IterativePruning(Constant(1), Ratio(0.5)), RecalibrateBatchNorm(100), max_epochs=2)
    assert lit.net[4].momentum == 0.1


def test_frozen_batch_norms_stay(tmp_path) -> None:
    class Frozen(Callback):
        def on_train_epoch_start(self, trainer, pl_module) -> None:
            pl_module.net[1].eval()

    lit = Lit()
    lit.net[1].running_mean.fill_(0.5)
    pruning = IterativePruning(Constant(1), Ratio(0.5))
    fit(tmp_path, lit, Frozen(), pruning, RecalibrateBatchNorm(2), max_epochs=2)
    assert lit.net[1].running_mean.tolist() == [0.5] * 4
    assert int(lit.net[4].num_batches_tracked) == STEPS  # begun anew


def test_resumed_while_averaging(tmp_path) -> None:
    def callbacks():
        return [IterativePruning(Constant(1), Ratio(0.5)), RecalibrateBatchNorm(6)]

    torch.manual_seed(0)
    whole = Lit()
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(tmp_path, whole, *callbacks(), save, max_epochs=4)
    again, seen = Lit(), Inputs()
    trainer_for(tmp_path / "b", *callbacks(), seen, max_epochs=4).fit(again, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert seen.momenta == [None] + [0.1] * 7
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def without_blocks() -> list[Callback]:
    """A block goes in each of two epochs, while the event before is still averaged over."""
    return [IterativePruning(Rounds(1, 1, 2), Count(1), BlockInfluence(), Blocks()), RecalibrateBatchNorm(6)]


def momenta(lit: nn.Module) -> dict[str, float | None]:
    return {name: module.momentum for name, module in lit.named_modules() if isinstance(module, nn.BatchNorm2d)}


def test_resumed_where_blocks_went_while_averaging(tmp_path) -> None:
    whole, again = LitResidual(), LitResidual()
    fit(tmp_path, whole, *without_blocks(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1), max_epochs=4)
    saved = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)["callbacks"]["RecalibrateBatchNorm"]
    assert saved == {"left": 2, "momenta": {"net.1.bn": 0.1, "net.2.bn": 0.1}}
    saved["momenta"]["net.4.bn"] = 0.1  # as checkpoints from before have it
    recalibrate, trainer = RecalibrateBatchNorm(6), trainer_for(tmp_path, *without_blocks(), max_epochs=4)
    trainer.fit(again, ckpt_path=tmp_path / "epoch=2.ckpt")
    assert momenta(again) == {"net.1.bn": 0.1, "net.2.bn": 0.1}
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    recalibrate.load_state_dict(saved)
    recalibrate.on_train_start(trainer, again)
    assert momenta(again) == {"net.1.bn": None, "net.2.bn": None}
    assert recalibrate.state_dict()["momenta"].keys() == {"net.1.bn", "net.2.bn"}


def test_a_block_that_comes_back_has_its_momentum(tmp_path) -> None:
    class Dropping(LitResidual):
        def on_validation_epoch_end(self) -> None:
            self.log("score", 0.9 if self.trainer.current_epoch < 2 else 0.5)

    class Seeing(Callback):
        def on_rollback(self, trainer, pl_module) -> None:
            seen.append(momenta(pl_module))

    seen: list[dict[str, float | None]] = []
    lit = Dropping()
    lit.net[3].bn.momentum = 0.3
    fit(tmp_path, lit, guard(), *without_blocks(), Seeing(), max_epochs=4)
    assert seen == [{"net.1.bn": 0.1, "net.2.bn": 0.1, "net.3.bn": 0.3}]  # only the first event stands
    assert momenta(lit) == seen[0]


def test_an_event_that_is_held_back_ends_averaging(tmp_path) -> None:
    class Holding(Callback):
        def on_before_prune(self, trainer, pl_module, pruning) -> None:
            if trainer.current_epoch == 2:
                pruning.pause("not now")

    lit, seen = Lit(), Inputs()
    fit(tmp_path, lit, IterativePruning(Rounds(1, 1, 2), Ratio(0.5)), RecalibrateBatchNorm(6), Holding(), seen,
        max_epochs=3)  # fmt: skip
    assert seen.momenta == [0.1] * 4 + [None] * 4 + [0.1] * 4


@pytest.mark.parametrize("norm", [True, False])
def test_a_network_without_batch_norms(tmp_path, norm: bool, recwarn) -> None:
    trainer = trainer_for(tmp_path, IterativePruning(Constant(1), Ratio(0.5)), RecalibrateBatchNorm(), max_epochs=2)
    trainer.fit(Lit(norm=norm))
    said = [str(w.message) for w in recwarn if "has no effect: Lit has no batch norm" in str(w.message)]
    assert len(said) == (0 if norm else 1)


@pytest.mark.parametrize("batches", [0, True, 2.0])
def test_arguments(batches) -> None:
    with pytest.raises(MisconfigurationException, match=re.escape(f"RecalibrateBatchNorm batches={batches!r} must be")):
        RecalibrateBatchNorm(batches)


def test_nothing_prunes(tmp_path) -> None:
    with pytest.raises(MisconfigurationException, match="has no effect without pruning"):
        trainer_for(tmp_path, RecalibrateBatchNorm(), max_epochs=1).fit(Lit())
