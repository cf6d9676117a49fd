"""No checkpoint stores a metric that belongs to a different network."""

import math
from typing import Any

import pytest
import torch
from helpers.training import STEPS, Lit, fit, trainer_for, widths
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_prune import IterativePruning, Plan, Report
from lightning_prune.budgets import Ratio
from lightning_prune.schedules import Constant, Rounds

HALF = Ratio(0.5)


def test_the_best_checkpoint_is_of_the_final_size(tmp_path) -> None:
    lit, checkpoint = Lit(), ModelCheckpoint(tmp_path, monitor="val_loss", mode="min")
    trainer = fit(tmp_path, lit, IterativePruning(Constant(3), Ratio(0.8)), checkpoint, max_epochs=4)
    file = torch.load(checkpoint.best_model_path, weights_only=True)
    assert file["epoch"] == 3
    assert file["state_dict"]["net.0.weight"].shape[0] == 2
    (measured,) = trainer.test(lit, ckpt_path="best", verbose=False)
    assert measured["val_loss"] == pytest.approx(float(checkpoint.best_model_score), rel=1e-5)
    assert widths(lit.net) == [2, 2, 3]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("top", [1, 2, -1])
@pytest.mark.parametrize("schedule", [Rounds(2, 2, 2), Rounds(6, 7, 2, unit="step")], ids=str)
def test_no_checkpoint_stores_a_metric_of_a_different_network(tmp_path, mode, top, schedule) -> None:
    lit = Lit()
    checkpoint = ModelCheckpoint(tmp_path, "{epoch}", monitor="val_loss", mode=mode, save_top_k=top)
    scores: dict[str, float] = {}

    class Scores(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            scores[f"epoch={trainer.current_epoch}.ckpt"] = float(trainer.callback_metrics["val_loss"])

    fit(tmp_path, lit, IterativePruning(schedule, Ratio(0.6)), Scores(), checkpoint, max_epochs=6)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == (6 if top == -1 else top)
    sizes = []
    for file in files:
        loaded = Lit()
        tester = trainer_for(tmp_path, IterativePruning(Constant(1), HALF))
        (measured,) = tester.test(loaded, ckpt_path=str(file), verbose=False)
        assert measured["val_loss"] == pytest.approx(scores[file.name], rel=1e-5)
        sizes.append(widths(loaded.net)[0])
    final = widths(lit.net)[0]
    assert min(sizes) == final
    assert top == -1 or sizes == [final] * top
    at_final = {f.name: scores[f.name] for f, size in zip(files, sizes, strict=True) if size == final}
    best = (min if mode == "min" else max)(at_final, key=at_final.__getitem__)
    assert checkpoint.best_model_path == str(tmp_path / best)
    assert float(checkpoint.best_model_score) == pytest.approx(scores[best])


def test_a_checkpoint_between_validations_does_not_inherit_the_metric_before_the_event(tmp_path) -> None:
    """Saved every other step, while the last metric is that of the dense network."""
    lit, seen = Lit(norm=False, lr=0.0), []
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", mode="min", every_n_train_steps=2, save_top_k=1)

    class Watch(Callback):
        def on_prune(self, trainer: Trainer, pl_module: LightningModule, plan: Plan, report: Report) -> None:
            seen.append(float(checkpoint.best_model_score or 0.0))

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            score = checkpoint.best_model_score
            assert not seen or trainer.global_step >= 3 * STEPS or score is None or not math.isfinite(score)

    fit(tmp_path, lit, Watch(), IterativePruning(Constant(2), Ratio(0.8)), checkpoint, max_epochs=4)
    assert seen
    (measured,) = trainer_for(tmp_path).test(lit, verbose=False)
    assert float(checkpoint.best_model_score) == pytest.approx(measured["val_loss"], rel=1e-5)
