"""Histograms, layout, figure and hyperparameters as TensorBoard reads them."""

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.logger_runs import BATCHES, FIGURE, Classifier, Witness, channels, curve, masks, read, trainer_of
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata

from lightning_prune import AccuracyGuard, Scope, SparsityLogger
from lightning_prune.callbacks.reporting.hyperparameters import as_code
from lightning_prune.callbacks.reporting.tensorboard import add_histograms
from lightning_prune.callbacks.reporting.tradeoff_figure import TradeoffPoint, tradeoff_figure
from lightning_prune.criteria import Criterion, Magnitude


def test_score_histograms_hold_every_unit(tmp_path: Path) -> None:
    witness = Witness()
    trainer_of(tmp_path, channels(), SparsityLogger(), witness).fit(Classifier())
    events = read(tmp_path / "run")
    assert list(witness.scores) == [3, 9]
    for step, units in witness.scores.items():
        for name, count in {"all": sum(units.values()), **units}.items():
            (found,) = [e.histogram_value for e in events.Histograms(f"scores/{name}") if e.step == step]
            assert found.num == sum(found.bucket) == count
    assert not any(tag.startswith("weights/") for tag in events.Tags()["histograms"])


def test_weight_histograms_hold_the_kept_weights(tmp_path: Path) -> None:
    model = Classifier()
    trainer_of(tmp_path, masks(), SparsityLogger(), epochs=4).fit(model)
    events = read(tmp_path / "run")
    survivors = [int(weight.count_nonzero()) for name, weight in model.named_parameters() if "weight" in name]
    last = events.Histograms("weights/all")[-1]
    assert last.step == 9
    assert last.histogram_value.num == sum(last.histogram_value.bucket) == sum(survivors)
    assert last.histogram_value.min > 0
    assert not any(tag.startswith("scores/") for tag in events.Tags()["histograms"])


def test_histograms_can_be_left_out(tmp_path: Path) -> None:
    trainer_of(tmp_path, channels(), SparsityLogger(histograms=False), epochs=2).fit(Classifier())
    assert read(tmp_path / "run").Tags()["histograms"] == []


def test_histograms_accept_equal_and_infinite_scores(tmp_path: Path) -> None:
    writer = TensorBoardLogger(tmp_path, name="", version="run").experiment
    scores = {
        "equal": torch.ones(3),
        "odd": torch.tensor([1.0, 2, torch.inf, torch.nan]),
        "none": torch.tensor([torch.nan]),
    }
    add_histograms(writer, "scores", "", scores, 0)
    writer.close()
    events = read(tmp_path / "run")
    counts = {tag: sum(events.Histograms(tag)[0].histogram_value.bucket) for tag in events.Tags()["histograms"]}
    assert counts == {"scores/all": 5, "scores/equal": 3, "scores/odd": 2}


def test_histogram_bins_match_numpy(tmp_path: Path) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    writer = TensorBoardLogger(tmp_path, name="", version="run").experiment
    add_histograms(writer, "scores", "", {"a": values}, 0)
    writer.close()
    found = read(tmp_path / "run").Histograms("scores/a")[0].histogram_value
    for limit, below in zip(found.bucket_limit, torch.tensor(found.bucket).cumsum(0), strict=True):
        assert abs(int((values <= limit).sum()) - int(below)) <= 1  # float32 against float64 at the edges
    assert found.sum == pytest.approx(values.double().sum().item())
    assert found.sum_squares == pytest.approx(values.double().square().sum().item())


def test_layout_shows_curves_that_exist(tmp_path: Path) -> None:
    guard = AccuracyGuard("val_acc", 1.0)
    trainer_of(tmp_path, channels(), guard, SparsityLogger(), epochs=2).fit(Classifier())
    events = read(tmp_path / "run")
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title: chart.multiline.tag for category in layout.category for chart in category.chart}
    tags = events.Tags()["scalars"]
    shown = {
        title: {tag for regex in regexes for tag in tags if re.match(regex, tag)} for title, regexes in charts.items()
    }
    assert shown["val_acc and sparsity"] == {"pruning/sparsity", "val_acc"}
    assert shown["parameters"] == {"pruning/parameters", "pruning/nonzero_parameters"}
    assert shown["MACs of one example"] == {"pruning/macs"}
    assert shown["width (channels)"] == {"width/net.0", "width/net.2", "width/net.4"}
    assert all(shown.values())


def test_points_are_the_last_validation_of_each_size(tmp_path: Path) -> None:
    class Metrics(pl.Callback):
        values: dict[int, float] = {}  # noqa: RUF012

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.values[trainer.current_epoch] = float(trainer.callback_metrics["val_acc"])

    logger, metrics, witness = SparsityLogger("val_acc"), Metrics(), Witness()
    trainer_of(tmp_path, channels(), logger, metrics, witness, epochs=6).fit(Classifier())
    sizes = [witness.seen[step] for step in (0, 3, 9)]
    assert [(p.event, p.epoch, p.parameters) for p in logger.points] == [
        (0, 0, sizes[0][0]),
        (1, 2, sizes[1][0]),
        (2, 5, sizes[2][0]),
    ]
    assert [p.value for p in logger.points] == [metrics.values[epoch] for epoch in (0, 2, 5)]
    images = read(tmp_path / "run").Images(FIGURE)
    assert [image.step for image in images] == [3, 9, 18]
    assert (images[0].width, images[0].height) == (960, 600)


def test_figure_shows_the_points() -> None:
    points = [
        TradeoffPoint(0, 3, 1000, 900, 0.9),
        TradeoffPoint(1, 5, 600, 500, 0.95),
        TradeoffPoint(2, 9, 400, 50, 0.8),
    ]
    axes = tradeoff_figure(points, "val_acc", nonzero=False).axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[1000, 0.9], [600, 0.95], [400, 0.8]]
    assert [text.get_text() for text in axes.texts] == ["dense, epoch 3", "epoch 9", "epoch 5"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == ("parameters", "val_acc", "linear")
    axes = tradeoff_figure(points, "val_acc", nonzero=True).axes[0]
    assert axes.collections[0].get_offsets()[:, 0].tolist() == [900, 500, 50]
    assert (axes.get_xlabel(), axes.get_xscale()) == ("nonzero parameters", "log")


def test_figure_leaves_pyplot_alone() -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    tradeoff_figure([TradeoffPoint(0, 0, 10, 10, 0.5)], "val_acc", nonzero=False)
    assert plt.get_fignums() == before


def _hparams(folder: Path) -> tuple[dict[str, Any], set[str]]:
    """Values and metric names of the table that TensorBoard shows: the first that the run wrote."""
    content = read(folder).PluginTagToContent(hparams_metadata.PLUGIN_NAME)
    start = hparams_metadata.parse_session_start_info_plugin_data(content[hparams_metadata.SESSION_START_INFO_TAG])
    experiment = hparams_metadata.parse_experiment_plugin_data(content[hparams_metadata.EXPERIMENT_TAG])
    assert hparams_metadata.SESSION_END_INFO_TAG in content
    values = {name: value.number_value or value.string_value for name, value in start.hparams.items()}
    return values, {info.name.tag for info in experiment.metric_infos}


@pytest.mark.parametrize("default_hp_metric", [True, False])
def test_hyperparameters_are_logged_with_the_final_metrics(tmp_path: Path, default_hp_metric: bool) -> None:
    logger = SparsityLogger("val_acc")
    board = TensorBoardLogger(tmp_path, name="", version="run", default_hp_metric=default_hp_metric)
    trainer_of(tmp_path, channels(), logger, logger=board).fit(Classifier(width=6))
    values, metrics = _hparams(tmp_path / "run")
    assert values["width"] == 6  # the module's own
    assert values["pruning/criterion"] == "Magnitude()"
    assert values["pruning/schedule"] == "Rounds(start=1, every=2, count=2)"
    assert values["pruning/budget"] == "Ratio(share=0.5)"
    assert values["pruning/granularity"] == "Channels()"
    assert values["pruning/scope"] == "Scope()"
    figures = {"parameters", "nonzero_parameters", "macs", "sparsity"}
    assert metrics == {f"result/{name}" for name in (*figures, "val_acc")}
    events = read(tmp_path / "run")
    for name in figures:
        assert curve(events, f"result/{name}") == [(5 * BATCHES, curve(events, f"pruning/{name}")[-1][1])]
    assert curve(events, "result/val_acc")[0][1] == pytest.approx(logger.points[-1].value)
    assert "width: 6" in (tmp_path / "run" / "hparams.yaml").read_text()


def test_code_of_parts_omits_defaults() -> None:
    class Odd(Criterion):
        pass

    assert as_code(Scope(exclude=["net.4"])) == "Scope(exclude=('net.4',))"
    assert as_code(Magnitude(p=1)) == "Magnitude(p=1)"
    assert as_code(Odd()) == "Odd"


def test_two_loggers_get_the_same(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, name=name, version="run") for name in ("a", "b")]
    trainer_of(tmp_path, channels(), SparsityLogger("val_acc"), logger=loggers, epochs=2).fit(Classifier())
    first, second = (read(tmp_path / name / "run") for name in ("a", "b"))
    assert first.Tags() == second.Tags()
    assert curve(first, "pruning/macs") == curve(second, "pruning/macs")


def test_several_pruners_have_their_own_figures(tmp_path: Path) -> None:
    pruners = channels(scope=Scope(include=["net.0"])), masks(Scope(include=["net.2"])), masks(Scope(include=["net.4"]))
    trainer_of(tmp_path, *pruners, SparsityLogger("val_acc")).fit(Classifier())
    events = read(tmp_path / "run")
    for name, pruner in zip(("channels", "weights", "weights_3"), pruners, strict=True):
        assert curve(events, f"pruning/sparsity/{name}")[-1][1] == pytest.approx(pruner.sparsity)
        assert curve(events, f"pruning/fraction/{name}")[-1][1] == 1
    histograms = events.Tags()["histograms"]
    assert {"scores/all/channels", "weights/all/weights", "weights/all/weights_3"} < set(histograms)
    values, metrics = _hparams(tmp_path / "run")
    assert values["pruning/granularity/channels"] == "Channels()"
    assert "result/sparsity/weights_3" in metrics
    assert "pruning/sparsity" not in events.Tags()["scalars"]
