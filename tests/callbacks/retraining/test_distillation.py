"""Distillation in a Trainer, against training steps that have the loss in them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.mixed_precision import scaled
from helpers.training import STEPS, Lit, fit, same, small_net, trainer_for, widths
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_prune import IterativePruning
from lightning_prune.budgets import Ratio
from lightning_prune.callbacks import Distillation
from lightning_prune.distilling import Features, SoftTargets, attention_map
from lightning_prune.schedules import Rounds

SOFT = SoftTargets(temperature=3, weight=0.7)


def teacher() -> Lit:
    torch.manual_seed(7)
    return Lit().eval()


class InTheLoss(Lit):
    """What the callback does, written into the training step."""

    def __init__(self, features: bool) -> None:
        super().__init__()
        self.features = features
        self.taught = [teacher()]  # no part of the module

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        inner, wanted = self.net[:3](images), self.taught[0].net[:3](images).detach()
        logits, soft = self.net[3:](inner), self.taught[0](images).detach()
        kl = F.kl_div(F.log_softmax(logits / 3, 1), F.softmax(soft / 3, 1), reduction="batchmean")
        loss = 0.3 * F.cross_entropy(logits, labels) + 0.7 * 9 * kl
        if self.features:
            loss = loss + 0.5 * (attention_map(inner) - attention_map(wanted)).square().sum(1).mean()
        self.losses.append(float(loss.detach()))
        return loss


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}], ids=str)
def test_training_is_that_with_the_loss_in_the_step(tmp_path: Path, options: Any, features: bool) -> None:
    ours, theirs = Lit(), InTheLoss(features)
    theirs.load_state_dict(ours.state_dict())
    losses = [SOFT, Features("net.2", weight=0.5)] if features else [SOFT]
    fit(tmp_path, ours, Distillation(teacher(), losses), max_epochs=2, **options)
    fit(tmp_path, theirs, max_epochs=2, **options)
    for (name, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("features", [False, True])
def test_under_a_loss_scale(tmp_path: Path, features: bool) -> None:
    ours, theirs = Lit(), InTheLoss(features)
    theirs.load_state_dict(ours.state_dict())
    losses = [SOFT, Features("net.2", weight=0.5)] if features else [SOFT]
    fit(tmp_path, ours, Distillation(teacher(), losses), max_epochs=2, **scaled())
    fit(tmp_path, theirs, max_epochs=2, **scaled())
    for (name, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-3, msg=name)


def test_the_dense_network_teaches_from_the_first_event_on(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    lit, distillation = Lit(), Distillation()
    taught: list[list[int]] = []

    pruning = IterativePruning(Rounds(1, 1, 2), Ratio(0.5))
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)

    class Look(Distillation):
        def on_train_batch_end(self, *arguments: Any) -> None:
            taught.append([] if self._teacher is None else widths(self._teacher.network))
            super().on_train_batch_end(*arguments)

    distillation = Look()
    fit(tmp_path, lit, distillation, pruning, keep, max_epochs=3, logger=logger, log_every_n_steps=1)
    assert taught == [[]] * STEPS + [[8, 8, 3]] * (2 * STEPS)
    assert widths(lit) == [4, 4, 3]
    for module in lit.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    state = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)["callbacks"][distillation.state_key]
    assert list(state) == ["path"]  # the teacher is in no checkpoint
    file = Path(state["path"])
    assert file.parent == Path(logger.log_dir)
    before = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["state_dict"]
    assert same(dict(torch.load(file, weights_only=True)["state_dict"]), dict(before))


def test_a_resumed_run_ends_bit_identical(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole = Lit()
    fit(tmp_path, whole, Distillation(), IterativePruning(Rounds(1, 1, 2), Ratio(0.5)), save, max_epochs=4)
    for epoch in range(3):
        part = Lit()
        trainer = trainer_for(tmp_path, Distillation(), IterativePruning(Rounds(1, 1, 2), Ratio(0.5)), max_epochs=4)
        trainer.fit(part, ckpt_path=str(tmp_path / f"epoch={epoch}.ckpt"))
        assert same(dict(part.state_dict()), dict(whole.state_dict())), epoch


def test_a_checkpoint_teaches(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, "{epoch}")
    dense = Lit()
    fit(tmp_path, dense, save, max_epochs=1)
    found = []
    for source in (save.best_model_path, copy.deepcopy(dense)):
        lit = Lit()
        lit.load_state_dict(teacher().state_dict())
        fit(tmp_path, lit, Distillation(source), max_epochs=1)
        found.append(dict(lit.state_dict()))
    assert same(*found)


def test_the_teacher_stays_as_it_is(tmp_path: Path) -> None:
    taught = teacher().train()
    before = copy.deepcopy(taught.state_dict())
    fit(tmp_path, Lit(), Distillation(taught), max_epochs=1)
    assert same(dict(taught.state_dict()), dict(before))
    assert taught.training
    assert all(p.requires_grad and p.grad is None for p in taught.parameters())


class Inner(Lit):
    """Calls a part of itself, not ``forward``."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])


def test_a_module_that_is_not_called(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="output of 'forward', which training_step has not called, or"):
        fit(tmp_path, Inner(), Distillation(teacher()), max_epochs=1)
    lit = Inner()
    before = copy.deepcopy(lit.state_dict())
    fit(tmp_path, lit, Distillation(teacher(), module="net"), max_epochs=1)  # the cure
    assert not same(dict(lit.state_dict()), dict(before))


def test_a_plain_module_teaches_a_part(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    distillation = Distillation(small_net(16), [SoftTargets(), Features("net.2")], module="net")
    fit(tmp_path, Lit(), distillation, max_epochs=2, logger=logger, log_every_n_steps=1)
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "distillation" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher": 3}, "Distillation teacher=3 is not 'dense', a path or a network"),
        ({"losses": []}, r"Distillation losses=\[\] must be a list of losses"),
        ({"losses": ["kl"]}, r"Distillation losses=\['kl'\] must be a list of losses"),
    ],
)
def test_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        Distillation(**arguments)


@pytest.mark.parametrize(
    ("distillation", "message"),
    [
        (Distillation(), "is the network before the first pruning event, but nothing is pruned"),
        (Distillation("missing.ckpt"), "Distillation: there is no teacher at 'missing.ckpt'; give its checkpoint"),
        (Distillation(teacher(), [Features("head")]), "the output of 'head', which the network does not have; it has"),
        (Distillation(nn.Linear(2, 2), [Features("net.2")], "net"), "the output of '2', which the teacher does not ha"),
        (Distillation(Lit(width=16), [Features("net.7")]), r"shape \(8, 8\) with \(8, 16\) of the teacher"),
    ],
)
def test_teachers_that_do_not_fit(tmp_path: Path, distillation: Distillation, message: str) -> None:
    lit = Lit()
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, lit, distillation, max_epochs=1)
    assert len(lit.losses) <= 1


def test_a_teacher_that_was_moved(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(tmp_path, Lit(), Distillation(), IterativePruning(Rounds(1, 1, 1), Ratio(0.5)), save, max_epochs=2)
    (file,) = tmp_path.glob("teacher-*.ckpt")
    file.unlink()
    trainer = trainer_for(tmp_path, Distillation(), IterativePruning(Rounds(1, 1, 1), Ratio(0.5)), max_epochs=3)
    with pytest.raises(MisconfigurationException, match=r"there is no teacher at .*give its checkpoint"):
        trainer.fit(Lit(), ckpt_path=str(tmp_path / "epoch=1.ckpt"))


def test_a_second_fit_has_the_same_teacher(tmp_path: Path) -> None:
    lit, distillation = Lit(), Distillation()
    pruning = IterativePruning(Rounds(1, 1, 2), Ratio(0.5))
    fit(tmp_path / "a", lit, distillation, pruning, max_epochs=3)
    logger = CSVLogger(tmp_path)
    fit(tmp_path / "b", lit, distillation, pruning, max_epochs=1, logger=logger, log_every_n_steps=1)
    assert "distillation" in (Path(logger.log_dir) / "metrics.csv").read_text()


def test_a_teacher_that_comes_too_late(tmp_path: Path) -> None:
    lit, pruning = Lit(), IterativePruning(Rounds(1, 1, 2), Ratio(0.5))
    fit(tmp_path, lit, pruning, max_epochs=3)
    with pytest.raises(MisconfigurationException, match="is not available: the network was pruned in a training"):
        fit(tmp_path, lit, pruning, Distillation(), max_epochs=1)
