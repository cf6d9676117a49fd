import contextlib
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.scripted import WIDTH, Scripted, loader, pruning
from helpers.training import trainer_for
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch.utils.data import DataLoader

from lightning_prune import AccuracyGuard, IterativePruning, load_pruned
from lightning_prune.budgets import All, FileSize, Params, Sparsity
from lightning_prune.callbacks import PruningSummary
from lightning_prune.callbacks.reporting.rounds_table import SummaryRow, rounds_table
from lightning_prune.file_size import compressed_size
from lightning_prune.granularity import Weights
from lightning_prune.network.size import Size
from lightning_prune.schedules import Constant, Rounds
from lightning_prune.tasks import DigitsData, ImageClassifier

EPOCHS = 5


def make_trainer(root: Path, callbacks: list[Callback], epochs: int = EPOCHS, **arguments: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=callbacks,
        default_root_dir=root,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{
            "logger": False,
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
            **arguments,
        },
    )


def shown(summary: PruningSummary, trainer: pl.Trainer, model: pl.LightningModule, datamodule: Any = None) -> str:
    """What ``conclude`` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        summary.conclude(trainer, model, datamodule)
    return output.getvalue()


def lines_of(text: str) -> dict[str, str]:
    """Values of the printed lines by their labels."""
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


def parameters(width: int) -> int:
    """Number of parameters of ``Scripted`` with a hidden layer of ``width`` units."""
    return (4 + 1) * width + (width + 1) * 2


# --- rows -----------------------------------------------------------------------------------------------------------


def scripted_run(root: Path, script: list[float], epochs: int, *callbacks: Callback) -> tuple[Scripted, pl.Trainer]:
    torch.manual_seed(0)
    module = Scripted(script)
    trainer = make_trainer(root, [pruning(), *callbacks], epochs)
    trainer.fit(module, loader(), loader())
    return module, trainer


@pytest.mark.parametrize("order", ["guard first", "summary first"])
def test_rows(tmp_path: Path, order: str) -> None:
    # events at epochs 2 and 4; the third, due at 6, is held back at 6 and 7, and comes at 8
    script = [0.1, 0.90, 0.2, 0.89, 0.3, 0.70, 0.71, 0.88, 0.87]
    summary, guard = PruningSummary(), AccuracyGuard("score", 0.05, on_drop="pause")
    scripted_run(tmp_path, script, 9, *((guard, summary) if order == "guard first" else (summary, guard)))
    assert [row.epoch for row in summary.rounds] == [0, 2, 4, 8]
    assert [row.size.params for row in summary.rounds] == [parameters(WIDTH - n) for n in range(4)]
    assert [row.size.macs for row in summary.rounds] == [(4 + 2) * (WIDTH - n) for n in range(4)]
    assert [row.sparsity for row in summary.rounds] == pytest.approx(
        [1 - parameters(WIDTH - n) / parameters(WIDTH) for n in range(4)]
    )
    assert [row.metric for row in summary.rounds] == pytest.approx([0.90, 0.89, 0.88, 0.87])
    assert [row.verdict for row in summary.rounds] == [
        "baseline",
        "kept (-0.0100)",
        "kept (-0.0200)",  # after it was dropped twice
        "kept (-0.0300)",
    ]


def test_a_stop_shows_in_the_last_row(tmp_path: Path) -> None:
    summary = PruningSummary()
    scripted_run(tmp_path, [0.9, 0.9, 0.9, 0.5], 20, AccuracyGuard("score", 0.05), summary)
    assert [row.verdict for row in summary.rounds] == ["baseline", "dropped (-0.4000)"]
    assert summary.rounds[-1].metric == pytest.approx(0.5)


def test_without_a_guard_the_metric_is_that_of_the_checkpoints(tmp_path: Path) -> None:
    summary = PruningSummary()
    scripted_run(tmp_path, [0.1, 0.9, 0.2, 0.8], 4, summary, ModelCheckpoint(tmp_path, monitor="score"))
    assert summary.monitor == "score"
    assert [row.metric for row in summary.rounds] == pytest.approx([0.9, 0.8])
    assert [row.verdict for row in summary.rounds] == ["", ""]


def test_the_metric_can_be_named(tmp_path: Path) -> None:
    summary = PruningSummary(monitor="score")
    scripted_run(tmp_path, [0.1, 0.9, 0.2, 0.8], 4, summary, ModelCheckpoint(tmp_path))
    assert [row.metric for row in summary.rounds] == pytest.approx([0.9, 0.8])


def test_validating_apart_from_training_changes_no_row(tmp_path: Path) -> None:
    summary = PruningSummary(monitor="score")
    module, trainer = scripted_run(tmp_path, [0.9], 4, summary)
    before = summary.state_dict()
    module.script = [0.1]
    trainer.validate(module, loader(), verbose=False)
    assert summary.state_dict() == before


def test_the_dense_network_is_the_one_just_before_the_first_event(tmp_path: Path) -> None:
    # The guard holds the first event, due at epoch 2, back until epoch 4.
    weights: list[torch.Tensor] = []

    class Before(Callback):
        def on_before_prune(self, trainer: pl.Trainer, pl_module: Scripted, _: Any) -> None:
            weights.append(pl_module.net[0].weight.detach().clone())

    guard, summary = AccuracyGuard("score", 0.05, on_drop="pause"), PruningSummary()
    scripted_run(tmp_path, [0.9, math.nan, math.nan, 0.8, 0.8], 5, Before(), guard, summary)
    assert summary.dense_path is not None
    assert [row.epoch for row in summary.rounds] == [0, 4]
    assert summary.rounds[0].metric == pytest.approx(0.8)
    assert summary.rounds[0].verdict == "baseline"
    saved = torch.load(summary.dense_path, weights_only=True)["state_dict"]["net.0.weight"]
    assert torch.equal(saved, weights[-1])
    assert not torch.equal(saved, weights[0])


def test_summary_without_a_pruner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        make_trainer(tmp_path, [PruningSummary()]).fit(Scripted([0.9]), loader(), loader())
    assert str(caught.value) == "PruningSummary has no effect without pruning; add IterativePruning(...)"


# --- the end --------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A finished training on digits, and what the summary printed."""

    root: Path
    trainer: pl.Trainer
    model: ImageClassifier
    summary: PruningSummary
    best: ModelCheckpoint
    text: str
    final_accuracies: dict[str, float]  # of validation, by checkpoint at the final size


def classifier() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(model_args={"width": 4}, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))


def halving() -> IterativePruning:
    return IterativePruning(Rounds(start=1, every=1, count=2), Params(keep=0.5))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("digits")
    pl.seed_everything(0)
    final: dict[str, float] = {}

    class Watch(Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if not trainer.sanity_checking and trainer.current_epoch >= 2:
                name = f"epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt"
                final[name] = float(trainer.callback_metrics["val_acc"])

    summary = PruningSummary()
    best = ModelCheckpoint(monitor="val_acc", mode="max")
    model, data = classifier(), DigitsData(batch_size=32)
    callbacks = [halving(), AccuracyGuard("val_acc", 1.0), summary, Watch(), best]
    trainer = make_trainer(root, callbacks, logger=TensorBoardLogger(str(root), name="digits"))
    trainer.fit(model, data)
    return Run(root, trainer, model, summary, best, shown(summary, trainer, model, data), final)


def accuracy_and_loss(path: str) -> tuple[float, float]:
    """Accuracy of a checkpoint on the test data, computed by hand."""
    network, data = load_pruned(ImageClassifier, path).eval(), DigitsData(batch_size=17)
    data.setup("test")
    images, labels = map(torch.cat, zip(*data.test_dataloader(), strict=True))
    with torch.no_grad():
        logits = network(images)
    return float((logits.argmax(1) == labels).double().mean()), float(torch.nn.functional.cross_entropy(logits, labels))


def test_figures_match_the_files(digits: Run) -> None:
    said = lines_of(digits.text)
    assert digits.summary.dense_path is not None
    dense_accuracy, dense_loss = accuracy_and_loss(digits.summary.dense_path)
    accuracy, loss = accuracy_and_loss(digits.best.best_model_path)
    assert said["test_acc"] == f"dense {dense_accuracy:.4f}, final {accuracy:.4f}"
    figures = [float(part.split()[1]) for part in said["test_loss"].split(", ")]
    assert figures == pytest.approx([dense_loss, loss], abs=1e-4)
    assert dense_accuracy != accuracy  # or the test would not tell one from the other


def test_final_is_the_best_of_the_final_size(digits: Run) -> None:
    assert list(digits.final_accuracies)
    best = max(digits.final_accuracies, key=lambda name: digits.final_accuracies[name])
    assert Path(digits.best.best_model_path).name == best
    assert lines_of(digits.text)["checkpoint"].endswith(best)
    params = sum(p.numel() for p in load_pruned(ImageClassifier, digits.best.best_model_path).parameters())
    assert params == digits.summary.rounds[-1].size.params
    assert params <= 0.5 * digits.summary.rounds[0].size.params


def test_printed_paths_exist(digits: Run) -> None:
    said = lines_of(digits.text)
    version = digits.root / "digits" / "version_0"
    assert Path(said["dense network"]) == version / "checkpoints" / "dense.ckpt"
    assert Path(said["dense network"]).is_file()
    assert Path(said["checkpoint"]).is_file()
    assert said["logs"] == f"tensorboard --logdir {version}"
    assert list(version.glob("events.out.tfevents.*"))


def test_paths_below_the_working_directory_are_short(digits: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits.root)
    said = lines_of(shown(digits.summary, digits.trainer, digits.model, DigitsData()))
    assert said["dense network"] == "digits/version_0/checkpoints/dense.ckpt"
    assert said["logs"] == "tensorboard --logdir digits/version_0"


def test_the_model_holds_the_final_network(digits: Run) -> None:
    file = torch.load(digits.best.best_model_path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, file[name]) for name, value in digits.model.state_dict().items())


def test_speed_and_rows_are_shown(digits: Run) -> None:
    assert lines_of(digits.text)["speed-up"].split()[1] == "x"
    assert "batch of 64: " in digits.text
    assert [row.epoch for row in digits.summary.rounds] == [0, 1, 2]
    for row in digits.summary.rounds:
        assert f"{row.size.params:,}" in digits.text
        assert f"{row.size.macs:,}" in digits.text
    assert "is not reached" not in digits.text
    assert digits.text.count("kept") == 2


def test_concluding_twice_prints_the_same(digits: Run) -> None:
    def without_times(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("speed-up")]

    again = shown(digits.summary, digits.trainer, digits.model, DigitsData())
    assert without_times(again) == without_times(digits.text)


@pytest.mark.parametrize("checkpoints", ["none", "unmonitored"])
def test_without_a_best_checkpoint_it_is_the_last_network(tmp_path: Path, checkpoints: str) -> None:
    summary, model, data = PruningSummary("val_acc"), classifier(), DigitsData()
    extra = [ModelCheckpoint(tmp_path / "ck")] if checkpoints == "unmonitored" else []
    trainer = make_trainer(tmp_path, [halving(), summary, *extra], epochs=3, limit_train_batches=4)
    trainer.fit(model, data)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    said = lines_of(shown(summary, trainer, model, data))
    folder = tmp_path / "ck" if extra else tmp_path
    assert Path(said["checkpoint"]) == folder / "final.ckpt"
    assert Path(said["dense network"]) == folder / "dense.ckpt"
    assert "logs" not in said
    assert said["test_acc"].startswith("dense ")
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    loaded = load_pruned(ImageClassifier, folder / "final.ckpt").state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in loaded.items())


class NoTestData(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return loader()

    def val_dataloader(self) -> DataLoader:
        return loader()


def test_without_test_data_a_finished_training_is_not_lost(tmp_path: Path) -> None:
    summary, module = PruningSummary("score"), Scripted([0.9, 0.9, 0.9, 0.8])
    best = ModelCheckpoint(tmp_path, monitor="score", mode="max", filename="best")
    trainer = make_trainer(tmp_path, [pruning(), summary, best], epochs=4)
    trainer.fit(module, NoTestData())
    text = shown(summary, trainer, module, NoTestData())
    assert "not tested: there is no test_step or no test_dataloader" in text
    assert "Pruning, round by round" in text
    assert Path(lines_of(text)["checkpoint"]) == tmp_path / "best.ckpt"
    assert "speed-up" in lines_of(text)
    file = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert file["epoch"] == 2
    assert torch.equal(module.net[0].weight, file["state_dict"]["net.0.weight"])


def test_a_file_size_budget_prints_the_final_size(tmp_path: Path) -> None:
    module, summary = Scripted([0.9] * 4), PruningSummary("score")
    budget = All([Sparsity(0.5), FileSize(mb=0.00165)])
    masks = IterativePruning(Constant(1), budget, granularity=Weights())
    trainer = make_trainer(tmp_path, [masks, summary], epochs=3)
    trainer.fit(module, loader(), loader())
    text = shown(summary, trainer, module, NoTestData())
    dense = torch.load(summary.dense_path, weights_only=True)["state_dict"]
    sizes = [compressed_size(dict(state)) / 1e6 for state in (dense, module.state_dict())]
    found = re.fullmatch(r"dense (\S+) MB, final (\S+) MB", lines_of(text)["compressed state dict"])
    assert found is not None
    assert [float(size) for size in found.groups()] == pytest.approx(sizes, abs=6e-4)
    assert "compressed" not in shown_without_bytes(tmp_path)


def shown_without_bytes(root: Path) -> str:
    module, summary = Scripted([0.9] * 4), PruningSummary("score")
    trainer = make_trainer(root, [pruning(), summary], epochs=3)
    trainer.fit(module, loader(), loader())
    return shown(summary, trainer, module, NoTestData())


class TwoTestSets(NoTestData):
    def test_dataloader(self) -> list[DataLoader]:
        return [loader(), loader()]


class WithTestData(Scripted):
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        self.log("width", float(self.width) + dataloader_idx)


def test_several_test_sets(tmp_path: Path) -> None:
    summary, module = PruningSummary("score"), WithTestData([0.9])
    trainer = make_trainer(tmp_path, [pruning(), summary], epochs=4)
    trainer.fit(module, TwoTestSets())
    said = lines_of(shown(summary, trainer, module, TwoTestSets()))
    assert said["width/dataloader_idx_0"] == f"dense {WIDTH:.4f}, final {WIDTH - 1:.4f}"
    assert said["width/dataloader_idx_1"] == f"dense {WIDTH + 1:.4f}, final {WIDTH:.4f}"


@pytest.mark.parametrize("epochs", [1, 4])
def test_a_budget_that_is_not_reached_is_reported(tmp_path: Path, epochs: int) -> None:
    summary, module = PruningSummary("score"), WithTestData([0.9])
    trainer = make_trainer(tmp_path, [pruning(), summary], epochs=epochs)
    trainer.fit(module, TwoTestSets())
    text = shown(summary, trainer, module, TwoTestSets())
    sparsity = 1 - parameters(WIDTH - 1) / parameters(WIDTH)
    way = (
        "at fraction 0.33 of the schedule, at sparsity " + f"{sparsity:.3f}"
        if epochs == 4
        else "at fraction 0.00 of the schedule"
    )
    assert f"Count(count=1) is not reached: the training ended {way}" in " ".join(text.split())
    assert ("Pruning, round by round" in text) == (epochs == 4)
    assert ("dense network" in lines_of(text)) == (epochs == 4)


def test_resume_keeps_the_rows_and_the_dense_network(tmp_path: Path) -> None:
    script = [0.90, 0.91, 0.92, 0.93, 0.94, 0.95]
    whole = PruningSummary("score")
    scripted_run(tmp_path / "whole", script, 6, whole)

    scripted_run(tmp_path, script, 3, PruningSummary("score"), ModelCheckpoint(tmp_path / "ck", save_last=True))
    resumed, module = PruningSummary("score"), WithTestData(script[3:])
    trainer = make_trainer(tmp_path / "other", [pruning(), resumed], epochs=6)
    trainer.fit(module, TwoTestSets(), ckpt_path=str(tmp_path / "ck" / "last.ckpt"))
    assert resumed.rounds == whole.rounds
    said = lines_of(shown(resumed, trainer, module, TwoTestSets()))
    assert Path(said["dense network"]) == tmp_path / "ck" / "dense.ckpt"
    assert said["width/dataloader_idx_0"] == f"dense {WIDTH:.4f}, final {WIDTH - 2:.4f}"


def test_a_missing_dense_file_is_not_tested(tmp_path: Path) -> None:
    summary, module = PruningSummary("score"), WithTestData([0.9])
    trainer = make_trainer(tmp_path, [pruning(), summary], epochs=4)
    trainer.fit(module, TwoTestSets())
    Path(str(summary.dense_path)).unlink()
    said = lines_of(shown(summary, trainer, module, TwoTestSets()))
    assert said["width/dataloader_idx_0"] == f"final {WIDTH - 1:.4f}"
    assert "dense network" not in said


# --- the table ------------------------------------------------------------------------------------------------------

LARGE = [
    SummaryRow(0, Size(304_326_632, 304_326_632, 59_686_223_872), 0.0, 12.3456, "baseline"),
    SummaryRow(100, Size(104_326_632, 104_326_632, 19_686_223_872), 0.657, 12.4690, "dropped (+0.1234)"),
]
SMALL = [
    SummaryRow(0, Size(308_074, 308_074, 3_034_368), 0.0, 0.9926, "baseline"),
    SummaryRow(8, Size(205_814, 205_814, 2_627_396), 0.332, 1.0, "kept (+0.0074)"),
]


def drawn(rows: list[SummaryRow], monitor: str | None, columns: int) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        Console(width=columns).print(rounds_table(rows, monitor))
    return output.getvalue()


@pytest.mark.parametrize("rows", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("monitor", ["val_acc", "val_accuracy_of_the_second_head", None])
@pytest.mark.parametrize("columns", [80, 120])
def test_no_number_is_cut_off(rows: list[SummaryRow], monitor: str | None, columns: int) -> None:
    text = drawn(rows, monitor, columns)
    assert "…" not in text
    assert all(len(line) <= columns for line in text.splitlines())
    for row in rows:
        assert {f"{row.size.params:,}", f"{row.size.macs:,}", f"{row.sparsity:.3f}", f"{row.metric:.4f}"} <= set(
            text.split()
        )
    assert set(" ".join(row.verdict for row in rows).split()) <= set(text.split())


def test_table_of_a_usual_run() -> None:
    lines = [line.rstrip() for line in drawn(SMALL, "val_acc", 80).splitlines()]
    assert [line for line in lines if line] == [
        "                           Pruning, round by round",
        " round   epoch   parameters        MACs   sparsity   val_acc   guard",
        " ────────────────────────────────────────────────────────────────────────────",
        " dense              308,074   3,034,368      0.000    0.9926   baseline",
        "     1       8      205,814   2,627,396      0.332    1.0000   kept (+0.0074)",
    ]


def test_masks_show_nonzero_parameters() -> None:
    rows = [SummaryRow(0, Size(1000, 1000, 5000), 0.0), SummaryRow(3, Size(1000, 250, 5000), 0.75)]
    text = drawn(rows, None, 80)
    assert "nonzero" in text
    assert "250" in text
    assert "parameters" not in text


def test_a_run_with_masks(tmp_path: Path) -> None:
    summary, module = PruningSummary("score"), WithTestData([0.9])
    masking = IterativePruning(Constant(start=1), Sparsity(0.75), granularity=Weights())
    trainer = make_trainer(tmp_path, [masking, summary], epochs=2)
    trainer.fit(module, TwoTestSets())
    text = shown(summary, trainer, module, TwoTestSets())
    weights = 4 * WIDTH + 2 * WIDTH
    assert summary.rounds[-1].size.nonzero == parameters(WIDTH) - 3 * weights // 4
    assert "nonzero" in text
    assert lines_of(text)["width/dataloader_idx_0"] == f"dense {WIDTH:.4f}, final {WIDTH:.4f}"


def test_the_dense_row_survives_a_resume_before_the_first_event(tmp_path) -> None:
    def train(epochs: int, resume: str | None = None) -> PruningSummary:
        lit, summary = Scripted([0.5, 0.6, 0.7, 0.8]), PruningSummary(monitor="score")
        lit.validations = 2 if resume else 0
        trainer = trainer_for(tmp_path, pruning(Rounds(2, 1, 1)), summary, max_epochs=epochs)
        trainer.fit(lit, loader(), loader(), ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return summary

    train(2)
    resumed = train(4, str(tmp_path / "last.ckpt"))
    assert [row.metric for row in resumed.rounds] == pytest.approx([0.6, 0.8])
