"""Supermask in a Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.mixed_precision import OVERFLOWS, scaled
from helpers.supermasked import WeightAveraging, model
from helpers.training import STEPS, Adversaries, Lit, fit, zero_share
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lightning_prune import IterativePruning, Scope, Weights
from lightning_prune.budgets import Sparsity
from lightning_prune.callbacks import Supermask
from lightning_prune.masks.supermask import LearnedMasks
from lightning_prune.schedules import Constant

NAMES = ["net.0.weight", "net.3.weight", "net.8.weight"]


def learned(callback: Supermask) -> LearnedMasks:
    assert callback._masks is not None
    return callback._masks


class InTheForward(Lit):
    """Edge-popup as a reparametrization: scores are parameters, and masks are part of the forward pass."""

    def __init__(self, sparsity: float) -> None:
        super().__init__(norm=False)
        self.frozen = {name: self.get_parameter(name).detach().clone() for name in NAMES}
        first = LearnedMasks(self.frozen, sparsity, 0.9, "random").scores
        self.scores = torch.nn.ParameterList([first[name].clone() for name in NAMES])
        self.sparsity = sparsity

    def effective(self) -> dict[str, Tensor]:
        found = {}
        for name, score in zip(NAMES, self.scores, strict=True):
            mask = torch.zeros_like(score)
            mask.view(-1)[score.flatten().topk(score.numel() - round(self.sparsity * score.numel())).indices] = 1
            through = mask + score - score.detach()  # its gradient is that of the score
            found[name.removeprefix("net.")] = self.frozen[name] * through
        return found

    def forward(self, images: Tensor) -> Tensor:
        return functional_call(self.net, self.effective(), images)

    def configure_optimizers(self) -> Any:
        others = [p for name, p in self.net.named_parameters() if name.endswith("bias")]
        optimizer = torch.optim.SGD(
            [{"params": others, "weight_decay": 1e-3}, {"params": list(self.scores)}], lr=self.hparams.lr, momentum=0.9
        )
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_that_of_the_reparametrisation(tmp_path: Path, accumulate: int) -> None:
    """With momentum, a decreasing learning rate, and weight decay, which applies only outside the scope."""
    ours, supermask = model(lr=0.7), Supermask(0.6)
    torch.manual_seed(0)
    theirs = InTheForward(0.6)
    theirs.hparams.lr = 0.7
    before = theirs.effective()
    options = {"max_epochs": 8, "accumulate_grad_batches": accumulate}
    fit(tmp_path, ours, supermask, **options)
    fit(tmp_path, theirs, **options)
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)
    changed = 0
    for name, weight in theirs.effective().items():
        torch.testing.assert_close(ours.net.get_parameter(name), weight, rtol=1e-5, atol=1e-6, check_stride=False)
        changed += int(((weight == 0) != (before[name] == 0)).sum())
    assert changed > 3, "else the masks have learned nothing"
    for name, parameter in theirs.net.named_parameters():
        if name.endswith("bias"):
            torch.testing.assert_close(ours.net.get_parameter(name), parameter, rtol=1e-4, atol=1e-6)


def test_weights_are_frozen_or_zero_at_any_time(tmp_path: Path) -> None:
    lit, supermask, logger = model(), Supermask(0.6, lr=0.5, scores="magnitude"), CSVLogger(tmp_path)
    first = {name: parameter.detach().clone() for name, parameter in lit.named_parameters()}
    seen: list[str] = []

    class Look(Callback):
        def _look(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            for name in NAMES:
                weight = pl_module.get_parameter(name).detach()
                assert bool(((weight == first[name]) | (weight == 0)).all())
                assert int((weight == 0).sum()) == round(0.6 * weight.numel())
            seen.append("looked")

        on_sanity_check_start = on_train_batch_start = on_train_batch_end = on_validation_batch_end = _look
        on_train_end = _look

    fit(tmp_path, lit, supermask, Look(), max_epochs=3, num_sanity_val_steps=1, logger=logger)
    assert len(seen) == 1 + 1 + 3 * (2 * STEPS + 3) + 1
    assert not any(torch.equal(lit.get_parameter(name), first[name]) for name in first)
    largest = first["net.3.weight"].abs().flatten().topk(first["net.3.weight"].numel() - 346).indices
    assert not lit.net[3].weight.flatten()[largest].all()  # it began with the magnitudes, and has moved on
    optimizer = lit.trainer.optimizers[0]
    assert {id(p) for p in optimizer.state} == {id(p) for n, p in lit.named_parameters() if n not in NAMES}
    assert not optimizer._optimizer_step_pre_hooks
    assert "supermask/sparsity" in (Path(logger.log_dir) / "metrics.csv").read_text()
    assert float(lit.trainer.callback_metrics["supermask/sparsity"]) == pytest.approx(0.6, abs=0.01)


def change_of_scores(folder: Path, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Update of the scores in the first step with a learning rate of 1, divided by w₀; and the weights."""
    lit, supermask = model(), Supermask(0.5, lr=1.0, momentum=0.0)
    initial = {name: lit.get_parameter(name).detach().clone() for name in NAMES}
    begin = LearnedMasks(initial, 0.5, 0.0, "random").scores
    fit(folder, lit, supermask, max_epochs=1, limit_train_batches=1, **options)
    return {n: (begin[n] - learned(supermask).scores[n]) / initial[n] for n in NAMES}, dict(lit.named_parameters())


def test_gradients_are_those_that_are_clipped(tmp_path: Path) -> None:
    plain, _ = change_of_scores(tmp_path)
    clipped, _ = change_of_scores(tmp_path, gradient_clip_val=1e-2)
    by_value, _ = change_of_scores(tmp_path, gradient_clip_val=1e-3, gradient_clip_algorithm="value")
    norm = torch.stack([gradient.norm() for gradient in clipped.values()]).norm()
    assert 0.1e-2 < float(norm) < 1e-2  # biases have a part in it
    for name, gradient in plain.items():
        factor = clipped[name].flatten() @ gradient.flatten() / gradient.square().sum()
        torch.testing.assert_close(clipped[name], factor * gradient, rtol=1e-2, atol=2e-5)
        torch.testing.assert_close(by_value[name], gradient.clamp(-1e-3, 1e-3), rtol=1e-2, atol=2e-5)


class Fused(Lit):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.hparams.lr, fused=True)


@pytest.mark.parametrize("fused", [False, True])
def test_scores_do_not_depend_on_the_loss_scale_and_overflowing_steps_are_skipped(
    tmp_path: Path, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = change_of_scores(tmp_path)
    if fused:
        monkeypatch.setattr("helpers.supermasked.Lit", Fused)
    half, _ = change_of_scores(tmp_path, **scaled())
    for name, gradient in plain.items():
        assert float((half[name] - gradient).norm() / gradient.norm()) < 0.05, name
    left_out, _ = change_of_scores(tmp_path, **scaled(OVERFLOWS))
    assert not any(change.any() for change in left_out.values())


def test_several_optimizers_under_manual_optimization(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lit, supermask = Adversaries(), Supermask(0.5, lr=10.0)
    first = {name: parameter.detach().clone() for name, parameter in lit.named_parameters()}
    fit(tmp_path, lit, supermask, max_epochs=3)
    for name, parameter in lit.named_parameters():
        if parameter.dim() > 1:
            assert bool(((parameter == first[name]) | (parameter == 0)).all())
            fresh = LearnedMasks({name: first[name]}, 0.5, 0, "random").weights_now()[name]
            assert not torch.equal(parameter, fresh), name
        else:
            assert not torch.equal(parameter, first[name])
    assert zero_share(lit) == pytest.approx(0.5, abs=0.03)


class Embedded(Lit):
    """With an embedding whose gradients are sparse."""

    def __init__(self, sparse: bool) -> None:
        super().__init__(norm=False)
        self.table = torch.nn.Embedding(3, 3, sparse=sparse)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]) + self.table(batch[1] * 0), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_sparse_gradients(tmp_path: Path) -> None:
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        lit, supermask = Embedded(sparse), Supermask(0.5)
        fit(tmp_path, lit, supermask, max_epochs=1)
        found.append(learned(supermask).scores["table.weight"])
    assert torch.equal(*found)


@pytest.mark.skipif(WeightAveraging is None, reason="this version of Lightning has no WeightAveraging")
@pytest.mark.parametrize("each", ["step_idx", "epoch_idx"])
def test_averages_are_masked_initial_weights(tmp_path: Path, each: str) -> None:
    lit, supermask = model(), Supermask(0.5, lr=1.0)
    first = {name: lit.get_parameter(name).detach().clone() for name in NAMES}
    seen: list[int] = []

    class Average(WeightAveraging):
        def should_update(self, **when: Any) -> bool:
            return when.get(each) is not None

    class Look(Callback):
        def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
            own = {name: pl_module.get_parameter(name) for name in NAMES}
            seen.append(sum(int(((own[name] != first[name]) & (own[name] != 0)).sum()) for name in NAMES))

        on_validation_epoch_start = on_train_end = _look

    fit(tmp_path, lit, Average(avg_fn=lambda old, new, count: 0.9 * old + 0.1 * new), supermask, Look(), max_epochs=3)
    assert seen == [0, 0, 0, 0]


def test_masks_together_with_those_of_a_pruner(tmp_path: Path) -> None:
    lit, supermask = model(), Supermask(0.5, scope=Scope(include=["net.0"]))
    pruning = IterativePruning(Constant(1), Sparsity(0.8), granularity=Weights(), scope=Scope(exclude=["net.0"]))
    fit(tmp_path, lit, supermask, pruning, max_epochs=3)
    assert int((lit.net[0].weight == 0).sum()) == 72
    assert int((lit.net[3].weight == 0).sum() + (lit.net[8].weight == 0).sum()) == 480
    with torch.no_grad():
        lit.net[0].weight.fill_(1)
    supermask.on_rollback(lit.trainer, lit)  # other callbacks bring back the network
    assert int((lit.net[0].weight == 0).sum()) == 72
