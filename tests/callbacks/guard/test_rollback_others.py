"""Rollbacks together with checkpoints, averages, the logger and the summary; refused settings; due events."""

import csv
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.judged import CHANNELS, METHODS, Judged, Sized, guard, run
from helpers.scripted import loader
from helpers.training import same, widths
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim.swa_utils import AveragedModel

from lightning_prune import AccuracyGuard, IterativePruning, SparsityLogger, load_pruned
from lightning_prune.budgets import Ratio
from lightning_prune.callbacks import PruningSummary
from lightning_prune.callbacks.pruning.due_events import DueEvents
from lightning_prune.schedules import Rounds

WeightAveraging: Any = getattr(lightning_callbacks, "EMAWeightAveraging", None)  # not in all versions we support


# --- together with other callbacks ----------------------------------------------------------------------------------


def width_in(trainer: Trainer, path: str) -> float:
    (measured,) = trainer.test(ckpt_path=path, dataloaders=loader(), verbose=False)
    return measured["width"]


SCORES = [0.80, 0.85, 0.90, 0.88, 0.99, 0.10]  # 20 units for two epochs, 16 for two, 12 for two


@pytest.mark.parametrize("top", [1, 2, 4, -1])
@pytest.mark.parametrize("end", ["at the next event", "at the end"])
def test_the_best_checkpoint_is_one_of_the_accepted_network(tmp_path: Path, end: str, top: int) -> None:
    """Its own best checkpoint if that still exists, otherwise the restored network."""
    last: Any = "link" if top == 4 else True
    save = ModelCheckpoint(tmp_path / "ck", "{epoch}", monitor="score", mode="max", save_top_k=top, save_last=last)
    module, pruning = Sized(0, SCORES), IterativePruning(Rounds(2, 2, 3), Ratio(12 / 20))
    trainer = run(tmp_path, module, pruning, guard(), save, epochs=6 if end == "at the end" else 9)
    assert module.validated == [20, 20, 16, 16, 12, 12]
    assert module.width == 16
    assert trainer.callback_metrics["score"] == pytest.approx(0.88)
    left = {path.name for path in (tmp_path / "ck").glob("epoch*")}
    expected = "epoch=2.ckpt" if top in (4, -1) else "epoch=6.ckpt"
    assert (Path(save.best_model_path).name, expected in left) == (expected, True)
    assert float(save.best_model_score) == pytest.approx(0.90 if top in (4, -1) else 0.88)
    assert set(save.best_k_models) == {str(tmp_path / "ck" / name) for name in left}
    for path in (save.best_model_path, save.last_model_path):
        assert width_in(trainer, path) == 16
        assert load_pruned(Sized(0), path).width == 16
    if top == 2:  # the next one saved would replace one of another size
        assert save.kth_best_model_path != save.best_model_path


@pytest.mark.parametrize("last", [False, True])
def test_the_last_checkpoint_is_the_accepted_network(tmp_path: Path, last: bool) -> None:
    save = ModelCheckpoint(tmp_path / "ck", save_last=last)
    module, pruning = Sized(16), IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20))
    trainer = run(tmp_path, module, pruning, guard(), save, epochs=9)
    assert width_in(trainer, save.best_model_path) == 16
    assert len(list((tmp_path / "ck").glob("epoch*"))) == 1
    if last:
        assert width_in(trainer, save.last_model_path) == 16


def test_a_retry_leaves_no_better_checkpoint_of_a_larger_network(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path / "ck", "{epoch}", monitor="score", mode="max")
    module, pruning = Sized(0, [0.99, 0.98, 0.5, 0.95, 0.94]), IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20))
    trainer = run(tmp_path, module, pruning, guard(retry=1), save, epochs=4)
    assert module.validated == [20, 16, 12, 14]
    assert width_in(trainer, save.best_model_path) == 14


@pytest.mark.skipif(WeightAveraging is None, reason="this version of Lightning has no EMA")
@pytest.mark.parametrize("method", ["magnitude", "masks"])
def test_averages_are_restored(tmp_path: Path, method: str) -> None:
    """As without the larger step; the training ends with the average in the network."""
    networks = []
    for script, epochs, schedule in (([0.9], 4, Rounds(2, 9, 4)), ([0.9, 0.9, 0.9, 0.5, 0.9], 6, Rounds(2, 2, 2))):
        module, average = Judged(script), WeightAveraging(decay=0.75)
        judges = [guard(retry=1)] if epochs == 6 else []
        run(tmp_path, module, *METHODS[method](schedule), *judges, average, epochs=epochs)
        networks.append((dict(module.state_dict()), dict(average._average_model.state_dict())))
    (wanted, copied), (found, copy_found) = networks
    assert same(found, wanted)
    count = copy_found.pop("n_averaged"), copied.pop("n_averaged")
    assert same(copy_found, copied)
    assert same(*count)


@pytest.mark.skipif(WeightAveraging is None, reason="this version of Lightning has no EMA")
@pytest.mark.parametrize("at_the_end", [False, True])
def test_the_training_ends_with_the_average_of_the_accepted_network(tmp_path: Path, at_the_end: bool) -> None:
    averages = []

    class Keep(Callback):
        def on_before_prune(self, trainer: Trainer, *_: Any) -> None:
            averages.append({k: v.clone() for k, v in average._average_model.module.state_dict().items()})

    module, average = Judged([0.9, 0.9, 0.9, 0.5]), WeightAveraging(decay=0.75)
    pruners = CHANNELS(Rounds(2, 1 if at_the_end else 2, 2))
    run(tmp_path, module, *pruners, Keep(), guard(), average, epochs=4 if at_the_end else 9)
    assert same(dict(module.state_dict()), averages[1 if at_the_end else 0])
    assert widths(module.net)[0] == (6 if at_the_end else 8)


def test_swa_is_restored(tmp_path: Path) -> None:
    copies, counts = [], []

    class Keep(Callback):
        def on_before_prune(self, *_: Any) -> None:
            copies.append({name: value.clone() for name, value in average._average_model.state_dict().items()})
            counts.append(int(average.n_averaged))

        def on_rollback(self, *_: Any) -> None:
            assert same(dict(average._average_model.state_dict()), copies[0])
            assert int(average.n_averaged) == counts[0]
            self.checked = True

    average, keep = StochasticWeightAveraging(0.01, swa_epoch_start=2), Keep()
    module = Judged([0.9, 0.9, 0.9, 0.5, 0.9])
    run(tmp_path, module, *CHANNELS(Rounds(3, 1, 2)), keep, guard(retry=1), average, epochs=6)
    assert keep.checked
    assert counts[1] > counts[0] > 0
    assert widths(module.net) == widths(average._average_model)


def test_a_network_that_averages_itself(tmp_path: Path) -> None:
    class Averaging(Judged):
        def __init__(self, script: list[float]) -> None:
            super().__init__(script)
            self.average = AveragedModel(self.net)

        def on_train_batch_end(self, *_: Any) -> None:
            self.average.update_parameters(self.net)

    networks = []
    for script, epochs, schedule in (([0.9], 4, Rounds(2, 9, 4)), ([0.9, 0.9, 0.9, 0.5, 0.9], 6, Rounds(2, 2, 2))):
        module = Averaging(script)
        judges = [guard(retry=1)] if epochs == 6 else []
        run(tmp_path, module, *CHANNELS(schedule), *judges, epochs=epochs)
        networks.append(dict(module.state_dict()))
    assert same(*networks)


def test_rows_and_points_of_rolled_back_networks_are_removed(tmp_path: Path) -> None:
    module, summary, logger = Sized(16), PruningSummary(), SparsityLogger()
    figures: list[dict[str, float]] = []

    class Figures(Callback):
        def on_rollback(self, trainer: Trainer, *_: Any) -> None:
            figures.append(logger._metrics(trainer, module))

    pruning = IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20))
    callbacks = [pruning, guard(retry=1), summary, logger, Figures()]
    trainer = run(tmp_path, module, *callbacks, epochs=9, logger=CSVLogger(tmp_path))
    assert [(row.epoch, row.gone, row.verdict) for row in summary.rounds] == [
        (0, False, "baseline"),
        (1, False, "kept (+0.0000)"),
        (2, True, "rolled back (-1.0000)"),
        (3, True, "rolled back (-1.0000)"),
    ]
    assert [row.metric for row in summary.rounds] == [1, 1, 0, 0]
    assert [(point.event, point.value) for point in logger.points] == [(0, 1.0), (1, 1.0)]
    assert [values["width/net.0"] for values in figures] == [16, 16]
    assert [values["pruning/sparsity"] for values in figures] == [pruning.sparsity] * 2
    assert [values["pruning/macs"] for values in figures] == [16 * 6, 16 * 6]
    rows = list(csv.DictReader(Path(trainer.log_dir, "metrics.csv").read_text().splitlines()))
    logged = [float(row["width/net.0"]) for row in rows if row["width/net.0"]]
    assert logged[-1] == 16
    assert {20, 16, 12, 14} == set(logged)


def test_the_curves_end_with_the_accepted_network(tmp_path: Path) -> None:
    """Also when it is restored after the last epoch was logged."""
    callbacks = [IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20)), guard(), SparsityLogger()]
    trainer = run(tmp_path, Sized(12), *callbacks, epochs=4, logger=CSVLogger(tmp_path))
    rows = list(csv.DictReader(Path(trainer.log_dir, "metrics.csv").read_text().splitlines()))
    logged = [float(row["width/net.0"]) for row in rows if row["width/net.0"]]
    assert logged[-2:] == [8, 12]


def test_a_row_is_updated_after_a_rollback(tmp_path: Path) -> None:
    module, summary = Sized(0, [1.0, 0.98, 0.5, 0.96]), PruningSummary()
    run(tmp_path, module, IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20)), guard(), summary, epochs=4, min_epochs=4)
    assert [(row.metric, row.gone) for row in summary.rounds] == [
        (pytest.approx(1.0), False),
        (pytest.approx(0.96), False),
        (pytest.approx(0.5), True),
    ]
    assert [row.verdict for row in summary.rounds] == ["baseline", "kept (-0.0400)", "rolled back (-0.5000)"]


# --- what is refused ------------------------------------------------------------------------------------------------


def test_callbacks_that_conclude_the_training_come_after_the_guard(tmp_path: Path) -> None:
    pruning = IterativePruning(Rounds(1, 1, 2), Ratio(0.5))
    averaging = [StochasticWeightAveraging(0.01)]
    for callback in [SparsityLogger(), *averaging]:
        with pytest.raises(MisconfigurationException) as caught:
            run(tmp_path, Judged([0.9]), pruning, callback, guard(), epochs=2, logger=CSVLogger(tmp_path))
        assert str(caught.value) == (
            f"AccuracyGuard on_drop='rollback' must come before {type(callback).__name__} in callbacks, which would "
            "conclude the training with a network that is then rolled back"
        )


def test_one_guard_rolls_back_and_others_may_stop(tmp_path: Path) -> None:
    pruning = IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20))
    with pytest.raises(MisconfigurationException, match="two AccuracyGuards have on_drop='rollback'"):
        run(tmp_path, Sized(16), pruning, guard(), guard(compared_to="best"), epochs=2)
    other = AccuracyGuard("score", 2.0, compared_to="best")
    module = Sized(16)
    run(tmp_path, module, IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20)), guard(retry=1), other, epochs=9)
    assert module.width == 16
    assert [v.value for v in other.verdicts] == [1, 1]  # not of networks that are gone


def test_averages_of_a_part_that_a_callback_keeps_are_refused(tmp_path: Path) -> None:
    class Keeps(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
            self.average = AveragedModel(pl_module.net)

    with pytest.raises(MisconfigurationException, match="cannot restore the average of Keeps, which covers a part"):
        run(tmp_path, Judged([0.9]), *CHANNELS(Rounds(1, 1, 2)), guard(), Keeps(), epochs=2)


# --- steps ----------------------------------------------------------------------------------------------------------


def test_state_of_due_events_is_plain_and_complete(tmp_path: Path) -> None:
    due = DueEvents(Rounds(1, 1, 2))
    due.take(1.0, due.next(1.0, 0.0))
    due.roll_back(0.5, 0.0)
    torch.save(due.state_dict(), tmp_path / "state.pt")
    again = DueEvents(Rounds(1, 1, 2))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert vars(again) == vars(due)
    step = again.next(2.0, 0.0)
    assert (step.time, step.aim) == (1.0, 0.25)
    assert again.is_due(1.0, 0.0, epoch=1)  # at once
    again.take(2.0, step)
    assert not again.is_due(2.0, 0.25, epoch=2)  # the rest of the event follows at the time of the next one
    assert again.is_due(3.0, 0.25, epoch=3)
    assert again.next(3.0, 0.25).aim == 0.5


class OneByOne(TorchCheckpointIO):
    """Removes single files only."""

    def remove_checkpoint(self, path: Any) -> None:
        os.remove(path)


@pytest.mark.parametrize("plugin", [OneByOne, AsyncCheckpointIO])
def test_other_ways_of_writing_files(tmp_path: Path, plugin: Any) -> None:
    """The file exists when it is needed, and is removed at the end."""
    found = []
    for name, plugins in (("usual", []), ("other", [plugin()])):
        torch.manual_seed(0)
        module, pruning = Sized(16), IterativePruning(Rounds(1, 1, 3), Ratio(12 / 20))
        run(tmp_path / name, module, pruning, guard(), epochs=9, plugins=plugins)
        assert not list((tmp_path / name).rglob("accepted-*"))
        found.append(module.width)
    assert found == [16, 16]
