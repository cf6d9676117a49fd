"""What the logger writes is what the network has: event files and CSV files read back."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.logger_runs import (
    BATCHES,
    FIGURE,
    Classifier,
    Unvalidated,
    Witness,
    channels,
    curve,
    masks,
    read,
    trainer_of,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_prune import SparsityLogger
from lightning_prune.callbacks.reporting.layer_metrics import layer_metrics, size_metrics
from lightning_prune.schedules import Constant


@pytest.mark.parametrize("declared", [True, False], ids=["example_input_array", "first batch"])
@pytest.mark.parametrize("order", [1, -1], ids=["logger last", "logger first"])
def test_channel_curves_match_the_network(tmp_path: Path, declared: bool, order: int) -> None:
    witness, model = Witness(), Classifier(declared=declared)
    trainer_of(tmp_path, *[channels(), SparsityLogger()][::order], witness).fit(model)
    events = read(tmp_path / "run")
    for index, name in enumerate(["parameters", "nonzero_parameters", "macs"]):
        found = dict(curve(events, f"pruning/{name}"))
        assert found == {step: size[index] for step, size in witness.seen.items()}
    dense = witness.seen[0][0]
    for step, value in curve(events, "pruning/sparsity"):
        assert value == pytest.approx(1 - witness.seen[step][0] / dense)
    assert curve(events, "pruning/fraction") == [
        (0, 0), (2, 0), (3, 0.5), (5, 0.5), (8, 0.5), (9, 1), (11, 1), (14, 1),
    ]  # fmt: skip
    width = [8] * 2 + [6] * 3 + [4] * 3
    assert [value for _, value in curve(events, "width/net.0")] == width
    assert [value for _, value in curve(events, "width/net.4")] == [2] * 8
    assert [value for _, value in curve(events, "sparsity/net.0")] == pytest.approx([1 - w / 8 for w in width])
    assert [v for _, v in curve(events, "sparsity/net.2")] == pytest.approx([1 - w * w / 64 for w in width])
    assert model.net[0].out_channels == 4


def test_curves_use_the_steps_of_lightnings_metrics(tmp_path: Path) -> None:
    trainer_of(tmp_path, channels(), SparsityLogger(), epochs=4).fit(Classifier())
    events = read(tmp_path / "run")
    validations = {step for step, _ in curve(events, "val_acc")}
    assert validations == {2, 5, 8, 11}
    assert validations < {step for step, _ in curve(events, "pruning/sparsity")}


def test_an_event_in_the_middle_of_an_epoch_is_a_step(tmp_path: Path) -> None:
    pruning = channels(Constant(start=4, unit="step"))
    trainer_of(tmp_path, pruning, SparsityLogger(), epochs=2).fit(Classifier())
    assert curve(read(tmp_path / "run"), "width/net.0") == [(0, 8), (2, 8), (3, 8), (4, 4), (5, 4)]


def test_several_optimizers_share_lightnings_step_axis(tmp_path: Path) -> None:
    class Alternating(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            halves = (self.net[:2].parameters(), self.net[2:].parameters())
            return [torch.optim.SGD(half, lr=0.1) for half in halves]

    trainer = trainer_of(tmp_path, channels(), SparsityLogger(), epochs=2)
    trainer.fit(Alternating())
    events = read(tmp_path / "run")
    assert trainer.global_step == 4 * BATCHES
    assert [step for step, _ in curve(events, "val_acc")] == [2, 5]
    assert curve(events, "width/net.0") == [(0, 8), (2, 8), (3, 6), (5, 6)]


def test_mask_curves_match_the_network(tmp_path: Path) -> None:
    witness, model, pruning = Witness(), Classifier(), masks()
    trainer_of(tmp_path, pruning, SparsityLogger(), witness).fit(model)
    events = read(tmp_path / "run")
    for index, name in enumerate(["parameters", "nonzero_parameters", "macs"]):
        assert dict(curve(events, f"pruning/{name}")) == {step: size[index] for step, size in witness.seen.items()}
    assert curve(events, "pruning/sparsity")[-1][1] == pytest.approx(0.75, abs=1e-3)
    for name, layer in layer_metrics(model).items():
        weight = model.get_submodule(name).weight
        assert curve(events, f"sparsity/{name}")[-1][1] == pytest.approx((weight == 0).float().mean().item())
        assert layer.weights == weight.numel()


def test_csv_logger_gets_the_curves(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer_of(tmp_path, channels(), SparsityLogger("val_acc"), logger=logger).fit(Classifier())
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [(int(row["step"]), float(row["width/net.0"])) for row in csv.DictReader(file) if row["width/net.0"]]
    assert rows == [(0, 8), (2, 8), (3, 6), (5, 6), (8, 6), (9, 4), (11, 4), (14, 4)]


def test_without_a_logger_it_warns(tmp_path: Path) -> None:
    logger = SparsityLogger("val_acc")
    with pytest.warns(UserWarning, match="no logger to write to"):
        trainer_of(tmp_path, channels(), logger, logger=False, epochs=3).fit(Classifier())
    assert [point.event for point in logger.points] == [0, 1]


def test_without_pruning_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="SparsityLogger has no effect without pruning"):
        trainer_of(tmp_path, SparsityLogger()).fit(Classifier())


def test_unknown_metric_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="'acc' is not logged by validation; it logs val_acc"):
        trainer_of(tmp_path, channels(), SparsityLogger("acc")).fit(Classifier())


@pytest.mark.parametrize(("model", "options"), [(Unvalidated, {}), (Classifier, {"limit_val_batches": 0})])
def test_without_validation_there_is_no_figure(tmp_path: Path, model: Any, options: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="no validation runs"):
        trainer_of(tmp_path, channels(), SparsityLogger("val_acc"), epochs=2, **options).fit(model())
    events = read(tmp_path / "run")
    assert FIGURE not in events.Tags()["images"]
    assert curve(events, "pruning/fraction")[-1] == (5, 0.5)
    assert "result/val_acc" not in events.Tags()["scalars"]


def test_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    trainer_of(tmp_path, channels(Constant(start=0)), SparsityLogger("val_acc"), fast_dev_run=True).fit(Classifier())
    assert list(tmp_path.rglob("events*")) == []


def test_validate_and_test_outside_fit_change_no_point(tmp_path: Path) -> None:
    logger, model = SparsityLogger("val_acc"), Classifier()
    trainer = trainer_of(tmp_path, channels(), logger, epochs=2)
    trainer.fit(model)
    points = list(logger.points)
    nn.init.zeros_(model.net[4].weight)
    trainer.validate(model, verbose=False)
    assert logger.points == points


def test_a_resumed_training_continues_the_figure(tmp_path: Path) -> None:
    straight = SparsityLogger("val_acc")
    trainer_of(tmp_path / "straight", channels(), straight, epochs=6).fit(Classifier())
    first, checkpoint = SparsityLogger("val_acc"), ModelCheckpoint(tmp_path, "half", save_last=True)
    trainer_of(tmp_path / "first", channels(), first, checkpoint, epochs=3).fit(Classifier())
    resumed = SparsityLogger("val_acc")
    trainer_of(tmp_path / "second", channels(), resumed, epochs=6).fit(
        Classifier(), ckpt_path=str(tmp_path / "last.ckpt")
    )
    assert [(p.event, p.epoch, p.parameters) for p in resumed.points] == [
        (p.event, p.epoch, p.parameters) for p in straight.points
    ]
    assert resumed.points[0] == first.points[0]
    whole, second = (read(tmp_path / name / "run") for name in ("straight", "second"))
    for tag in ("pruning/parameters", "pruning/sparsity", "pruning/macs", "width/net.0", "sparsity/net.2"):
        after = {step: value for step, value in curve(whole, tag) if step >= 9}
        assert dict(curve(second, tag)) == after


def test_resume_of_a_training_without_the_logger_uses_the_dense_layers(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, "half", save_last=True)
    trainer_of(tmp_path, channels(), checkpoint, epochs=3, logger=False).fit(Classifier())
    trainer_of(tmp_path, channels(), SparsityLogger(), epochs=4).fit(
        Classifier(), ckpt_path=str(tmp_path / "last.ckpt")
    )
    assert curve(read(tmp_path / "run"), "sparsity/net.0")[0][1] == 0.25


def test_state_is_plain_and_is_restored(tmp_path: Path) -> None:
    logger = SparsityLogger("val_acc")
    trainer_of(tmp_path, channels(), logger, epochs=3).fit(Classifier())
    torch.save(logger.state_dict(), tmp_path / "state.pt")
    other = SparsityLogger("val_acc")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.points == logger.points
    assert other.state_dict() == logger.state_dict()


def test_a_second_fit_continues(tmp_path: Path) -> None:
    pruning, logger, model = channels(), SparsityLogger("val_acc"), Classifier()
    trainer = trainer_of(tmp_path, pruning, logger, epochs=2)
    trainer.fit(model)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model)
    assert curve(read(tmp_path / "run"), "sparsity/net.0")[-1][1] == 0.5
    assert [point.event for point in logger.points] == [0, 1, 2]


def test_widths_of_layers_of_every_kind() -> None:
    net = nn.ModuleDict(
        {
            "transposed": nn.ConvTranspose2d(4, 6, 3),
            "embedding": nn.Embedding(10, 5),
            "attention": nn.MultiheadAttention(8, 2),
            "lstm": nn.LSTM(3, 7),
            "norm": nn.LayerNorm([3, 3]),
            "linear": nn.Linear(3, 9),
        }
    )
    widths = {name: layer.width for name, layer in layer_metrics(net).items()}
    assert {n: widths[n] for n in ("transposed", "embedding", "lstm", "linear")} == {
        "transposed": 6, "embedding": 5, "lstm": 7, "linear": 9,
    }  # fmt: skip
    assert widths["attention.out_proj"] == 8


def test_curves_of_a_network_count_by_hand() -> None:
    linear = nn.Linear(4, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]]))
        linear.bias.zero_()
    assert size_metrics(linear, {"Linear": 16}, macs=8) == {
        "pruning/parameters": 10,
        "pruning/nonzero_parameters": 3,
        "pruning/macs": 8,
        "sparsity/Linear": 1 - 3 / 16,
        "width/Linear": 2,
    }
