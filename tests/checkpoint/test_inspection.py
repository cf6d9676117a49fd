"""What `lightning-prune inspect` says about a file."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import Lit, fit, small_net
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from lightning_prune import AccuracyGuard, Channels, IterativePruning, Weights, prune_once
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.checkpoint.inspection import inspect_file, show
from lightning_prune.cli import main
from lightning_prune.schedules import Rounds


def printed(path: Path) -> str:
    stream = io.StringIO()
    show(inspect_file(path), path, Console(file=stream, width=200))
    return stream.getvalue()


@pytest.fixture(scope="module", params=["channels", "weights"])
def trained(request, tmp_path_factory) -> tuple[Any, IterativePruning, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    channels = request.param == "channels"
    pruning = IterativePruning(
        Rounds(1, 1, 2), Ratio(0.5) if channels else Sparsity(0.75), granularity=Channels() if channels else Weights()
    )
    lit = Lit()
    fit(folder, lit, pruning, ModelCheckpoint(folder, "{epoch}", save_top_k=-1), max_epochs=3)
    return lit, pruning, folder


def test_events_of_a_training(trained) -> None:
    lit, pruning, folder = trained
    for epoch, events in ((0, 0), (1, 1), (2, 2)):
        found = inspect_file(folder / f"epoch={epoch}.ckpt")
        assert found.position["epoch"] == epoch
        assert [len(history) for history in found.events.values()] == ([events] if events else [])
    (history,) = found.events.values()
    assert [entry["event"] for entry in history] == [1, 2]
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert history[0]["parameters"][1] == history[1]["parameters"][0]
    assert history[-1]["sparsity"] == pruning.sparsity
    assert history[-1]["parameters"][1] == sum(p.numel() for p in lit.parameters())
    assert history[-1]["step"] < found.position["global_step"]
    assert [list(entry["metrics"]) for entry in history] == [["val_loss"], ["val_loss"]]


def test_shapes_and_sizes(trained) -> None:
    lit, pruning, folder = trained
    found = inspect_file(folder / "epoch=2.ckpt")
    dense, state = Lit().state_dict(), lit.state_dict()
    expected = {
        name: (tuple(dense[name].shape), tuple(value.shape))
        for name, value in state.items()
        if dense[name].shape != value.shape
    }
    assert found.shapes == expected
    assert bool(expected) == isinstance(pruning.granularity, Channels)
    assert found.values[:2] == tuple(sum(value.numel() for value in each.values()) for each in (dense, state))
    assert found.values[2] == sum(int(value.count_nonzero()) for value in state.values())


def test_what_is_printed(trained, capsys) -> None:
    _, pruning, folder = trained
    path = str(folder / "epoch=2.ckpt")
    main(["inspect", path, str(folder / "epoch=0.ckpt")])
    said = capsys.readouterr().out
    assert "(epoch 2, global step" in said
    assert said.count("Events") == 1
    assert "No pruning is recorded in this file." in said  # the first one
    assert f"{pruning.sparsity:.4f}" in said
    assert ("Shapes" in said) == isinstance(pruning.granularity, Channels)


def test_events_that_were_rolled_back(tmp_path) -> None:
    """With a bound that nothing meets, every event is taken back."""
    lit, save = Lit(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    guard = AccuracyGuard("val_loss", 0.0, mode="max", on_drop="rollback", retry=1)
    callbacks = [IterativePruning(Rounds(1, 1, 2), Ratio(0.5)), guard, save]
    fit(tmp_path, lit, *callbacks, max_epochs=5, min_epochs=5)  # the loss falls, and a high one is wanted
    assert "1, rolled back" in printed(tmp_path / "epoch=3.ckpt")
    assert "rolled back" not in printed(tmp_path / "epoch=1.ckpt")


def test_a_state_dict_of_a_network_pruned_once(tmp_path) -> None:
    net = small_net()
    prune_once(net, torch.zeros(2, 2, 3, 4))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    found = inspect_file(tmp_path / "net.pt")
    assert found.shapes["0.weight"][1][0] * 2 == found.shapes["0.weight"][0][0]
    assert (found.position, found.events) == ({}, {})
    assert re.search(r"0\.weight +\d+ x 2 x 3 x 3 +\d+ x 2 x 3 x 3", printed(tmp_path / "net.pt"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {}}, "is neither a Lightning checkpoint nor a file with a state dict"),
        ([1, 2], "is neither a Lightning checkpoint nor a file with a state dict"),
        ({"a": 1}, "is neither a Lightning checkpoint nor a file with a state dict"),
        (b"no checkpoint", "lightning-prune: "),
        (None, "there is no file "),
    ],
)
def test_other_files(tmp_path, capsys, content, said) -> None:
    path = tmp_path / "file.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(SystemExit) as exit_code:
        main(["inspect", str(path)])
    assert exit_code.value.code == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["text", "empty", "folder", "truncated", "zip"])
def test_a_file_that_is_no_checkpoint_is_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    if kind == "folder":
        path.mkdir()
    elif kind == "truncated":
        torch.save({"weight": torch.randn(64, 64)}, path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", "b")
    else:
        path.write_bytes(b"model: {}\n" if kind == "text" else b"")
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(path)])
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lightning-prune: {str(path)!r} cannot be read: it is not a checkpoint")
