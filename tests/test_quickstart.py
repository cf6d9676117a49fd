"""The recipe that a newcomer runs first, as it is."""

import contextlib
import io
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_prune import load_pruned
from lightning_prune.cli import main
from lightning_prune.tasks import ImageClassifier

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"


@pytest.mark.slow
def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        main(["fit", "--config", str(RECIPE), "--trainer.enable_progress_bar=false"])
    said = dict(line.split(": ", 1) for line in output.getvalue().splitlines() if ": " in line)

    dense, final = (Path(said[name]) for name in ("dense network", "checkpoint"))
    counts = [sum(p.numel() for p in load_pruned(ImageClassifier, path).parameters()) for path in (dense, final)]
    assert counts[0] >= 3 * counts[1]

    accuracy = re.fullmatch(r"dense ([\d.]+), final ([\d.]+)", said["test_acc"])
    assert accuracy is not None
    assert float(accuracy[2]) >= float(accuracy[1]) - 0.01
    assert float(accuracy[2]) > 0.95

    table = [line.split() for line in output.getvalue().splitlines() if re.match(r" +(dense|\d)", line)]
    assert [row[0] for row in table] == ["dense", "1", "2", "3", "4", "5"]
    assert "is not reached" not in output.getvalue()

    events = EventAccumulator(said["logs"].removeprefix("tensorboard --logdir ")).Reload()
    assert {"val_acc", "train_loss", "pruning/sparsity", "pruning/macs"} <= set(events.Tags()["scalars"])
    assert events.Scalars("pruning/parameters")[-1].value == counts[1]
    assert events.Scalars("pruning/macs")[-1].value <= 0.33 * events.Scalars("pruning/macs")[0].value
