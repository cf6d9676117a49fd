"""The benchmark after the SageMaker article: what it records of a tiny network, and its page by hand-made rows."""

import io
import json
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sagemaker
import torch
from common.images import Images, normalized
from common.sagemaker_page import conclusion, draw, lines, text
from helpers.training import curves
from lightning.pytorch import seed_everything
from matplotlib.figure import Figure
from PIL import Image
from sagemaker import Curve, Setting, curve, filters_of, height, in_batches, main, parts_of, resized
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torchvision.models import resnet18

from lightning_prune import prune_once
from lightning_prune.budgets import Ratio
from lightning_prune.tasks import ImageClassifier

TINY = Setting(
    images=(None, None, None), batch=8, dense_epochs=2, tuning_epochs=1, rates=(0.05, 0.01), device="cpu", pixels=8,
    rounds=3, count=4, max_drop=1.0,
)  # fmt: skip
ABOUT = {"date": "2026-01-02", "commit": "abc", "versions": {"torch": "9"}, "hardware": "a machine", "threads": 1}


def coloured(count: int, seed: int, wrong: int) -> Images:
    """Noise in which the channel of its class is brighter; one label of ``wrong`` is not that class."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(100, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 3
    pixels[torch.arange(count), labels] += 60
    labels[::wrong] = (labels[::wrong] + 1) % 3
    return Images(pixels, labels)


PARTS = coloured(96, seed=0, wrong=100), coloured(30, seed=1, wrong=5), coloured(62, seed=2, wrong=4)


def tiny(setting: Setting, classes: int = 3) -> ImageClassifier:
    return ImageClassifier(
        "small_resnet", num_classes=classes, in_channels=3, model_args={"width": 4},
        optimizer=partial(SGD, lr=setting.rates[0], momentum=0.9),
        lr_scheduler=partial(LambdaLR, lr_lambda=partial(height, setting=setting)),
    )  # fmt: skip


def trained(setting: Setting) -> tuple[ImageClassifier, list[dict[str, Any]]]:
    seed_everything(0, verbose=False)
    classifier = tiny(setting)
    return classifier, curve(classifier, PARTS, setting)


@pytest.fixture(scope="module")
def measured() -> tuple[ImageClassifier, list[dict[str, Any]]]:
    return trained(TINY)


def share_right(network: nn.Module, images: Images) -> float:
    with torch.no_grad():
        return float((network.eval()(normalized(images.pixels)).argmax(1) == images.labels).double().mean())


def macs_by_hand(network: nn.Module) -> int:
    """Of every convolution and linear layer: outputs times the inputs of one of them."""
    total = 0

    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()  # type: ignore[operator, index]

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 8, 8))
    for hook in hooks:
        hook.remove()
    return total


# --- what is recorded


def test_a_row_for_the_dense_network_and_for_every_round(measured: Any) -> None:
    dense, (classifier, rows) = tiny(TINY), measured
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert [row["removed"] for row in rows] == [0, 4, 8, 12]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]  # of the validation before the next round, or of the last
    assert all(row["kept"] for row in rows)
    for row, network in ((rows[0], dense), (rows[-1], classifier)):
        assert row["params"] == sum(p.numel() for p in network.parameters())
        assert row["filters"] == sum(len(p) for p in network.parameters() if p.dim() == 4)
        assert row["macs"] == macs_by_hand(network)
    for key in ("params", "filters", "macs"):
        assert [row[key] for row in rows] == sorted({row[key] for row in rows}, reverse=True)
    assert rows[-1]["val_acc"] == pytest.approx(share_right(classifier, PARTS[1]))
    assert rows[-1]["test_acc"] == pytest.approx(share_right(classifier, PARTS[2]))
    assert rows[-1]["val_acc"] != rows[-1]["test_acc"]
    assert rows[0]["val_acc"] > 0.5, "it has learned something"
    assert json.loads(json.dumps(rows)) == rows


def test_measuring_changes_nothing(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Curve, "on_verdict", lambda *_: None)
    control, rows = trained(TINY)
    assert rows == []
    for (name, value), wanted in zip(measured[0].state_dict().items(), control.state_dict().values(), strict=True):
        assert torch.equal(value, wanted), name


def test_where_the_guard_stops_the_curve_ends() -> None:
    setting = replace(TINY, dense_epochs=1, rates=(0.05, 1e6), max_drop=0.1)  # fine-tuning that destroys
    _, rows = trained(setting)
    assert [(row["round"], row["kept"]) for row in rows] == [(0, True), (1, False)]
    assert rows[1]["val_acc"] < rows[0]["val_acc"] - 0.1


def test_the_learning_rate_by_hand() -> None:
    setting = replace(TINY, rates=(0.1, 0.02))
    assert [height(epoch, setting) for epoch in (0, 1, 2, 9)] == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_units_of_resnet18_are_enough_for_all_rounds_and_no_more() -> None:
    network = resnet18()
    widths = prune_once(network, torch.zeros(1, 3, 64, 64), budget=Ratio(0.5), dry_run=True).widths
    units = sum(before for before, _ in widths.values())
    assert (filters_of(network), units, len(widths)) == (4800, 2880, 12)
    for setting in (sagemaker.FULL, sagemaker.SMALL):
        assert (setting.rounds * setting.count, setting.max_drop) == (2800, 0.1)
        assert setting.rounds == (units - len(widths)) // setting.count


# --- images


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten classes of twenty images to train on and three to test, each of one grey."""
    (tmp_path / "cifar10-jpeg").mkdir()
    for split, count in (("train", 20), ("test", 3)):
        with zipfile.ZipFile(tmp_path / "cifar10-jpeg" / f"{split}.zip", "w") as archive:
            for kind in range(10):
                for number in range(count):
                    buffer = io.BytesIO()
                    grey = 10 * number + kind
                    Image.new("RGB", (32, 32), (grey, grey, grey)).save(buffer, "JPEG", quality=100)
                    archive.writestr(f"{split}/{kind}/{number:04}.jpg", buffer.getvalue())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def greys(images: Images) -> list[int]:
    assert torch.equal(images.pixels, images.pixels[:, :1, :1, :1].expand_as(images.pixels))
    return images.pixels[:, 0, 0, 0].tolist()


def test_the_guard_sees_images_that_do_not_train(data: Path) -> None:
    train, val, test = parts_of(data, TINY)
    assert greys(val) == [10 * number + kind for kind in range(10) for number in (9, 19)]
    assert greys(train) == [10 * n + kind for kind in range(10) for n in range(20) if n % 10 != 9]
    assert greys(test) == [10 * number + kind for kind in range(10) for number in range(3)]
    assert all(part.pixels.shape[1:] == (3, 8, 8) for part in (train, val, test))
    train, val, test = parts_of(data, replace(TINY, images=(50, 10, 20)))
    assert [part.labels.bincount().tolist() for part in (train, val, test)] == [[5] * 10, [1] * 10, [2] * 10]


def test_resized_by_hand() -> None:
    images = Images(torch.tensor([[0, 100], [0, 100]], dtype=torch.uint8).expand(1, 3, 2, 2), torch.zeros(1))
    found = resized(images, 4)
    assert found.pixels.dtype == torch.uint8
    assert found.pixels.tolist() == [[[[0, 25, 75, 100]] * 4] * 3]


def test_validation_has_each_image_once_in_order() -> None:
    batches = list(in_batches(PARTS[1], size=8))
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 6]
    assert torch.equal(torch.cat([images for images, _ in batches]), normalized(PARTS[1].pixels))
    assert torch.equal(torch.cat([labels for _, labels in batches]), PARTS[1].labels)


# --- the page


def row(number: int, filters: int, params: int, macs: int, val: float, test: float, kept: bool = True) -> Any:
    return {
        "round": number, "epoch": number, "removed": 200 * number, "filters": filters, "params": params, "macs": macs,
        "val_acc": val, "test_acc": test, "kept": kept, "says": "",
    }  # fmt: skip


ROWS = [
    row(0, 4800, 11_181_642, 148_050_944, 0.5, 0.49),
    row(1, 4458, 5_590_821, 37_012_736, 0.525, 0.5),
    row(2, 4100, 1_000_000, 9_000_000, 0.375, 0.36, kept=False),
]
CONTENT = {
    **ABOUT, "seconds": 90, "images": [1500, 600, 1000], "rows": ROWS,
    "setting": {
        "images": [1500, 600, 1000], "pixels": 64, "dense_epochs": 7, "tuning_epochs": 1, "count": 200, "max_drop": 0.1,
    },
}  # fmt: skip


def test_the_table_by_hand() -> None:
    assert lines(ROWS) == [
        ["dense", "0", "4,800", "11.182 M", "148.05 M", "50.0", "49.0", "", "baseline"],
        ["1", "200", "4,458", "5.591 M", "37.01 M", "52.5", "50.0", "+2.5", "within"],
        ["2", "400", "4,100", "1.000 M", "9.00 M", "37.5", "36.0", "-12.5", "stops"],
    ]


def test_the_conclusion_is_of_the_last_network_within_the_limit() -> None:
    small = (
        "that of round 1, has 2.0 times fewer parameters and 4.0 times fewer MACs than the dense one, and +1.0 points"
    )
    stopped, ran_out = conclusion(CONTENT), conclusion({**CONTENT, "rows": ROWS[:2]})
    assert stopped.startswith("Round 2 lost more than 10 points, and the guard stopped the training.")
    assert ran_out.startswith("No round lost more than 10 points.")
    assert stopped.endswith(
        "points on the test images. The dense network is not fully trained: it started from random weights and has "
        "seen 1,500 images 7 times, so the cost of a round and the gain of further training cannot be separated."
    )
    full = {**CONTENT, "setting": {**CONTENT["setting"], "images": [None, None, None]}}
    assert conclusion(full).endswith("points on the test images.")
    assert small in stopped
    assert small in ran_out


def test_the_page_and_the_figure(tmp_path: Path, saved: list[Figure]) -> None:
    page = text(CONTENT, "curve.png")
    assert page.startswith("# 200 units a round, in one fit\n\nRound 2 lost")
    assert "| 2 | 400 | 4,100 | 1.000 M | 9.00 M | 37.5 | 36.0 | -12.5 | stops |\n" in page
    assert "![Parameters and accuracy](curve.png)" in page
    assert "1,500 training images, 600 validation images for the guard, 1,000 test images" in page
    assert " 1.5 minutes in all.\n" in page
    assert page.endswith("2026-01-02, commit abc; a machine, 1 thread; torch 9.\n")
    draw(CONTENT, tmp_path / "curve.png")
    rows = CONTENT["rows"]
    validation, test, guard = curves(saved[0].axes[0]).values()
    params = [row["params"] for row in rows]
    assert validation == (params, pytest.approx([100 * row["val_acc"] for row in rows]))
    assert test == (params, pytest.approx([100 * row["test_acc"] for row in rows]))
    assert guard[1] == pytest.approx([40, 40])  # ten points below 50 %
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size == (1200, 675)
        assert len(image.convert("RGB").getcolors(2**20)) > 50


# --- the command


def test_the_command_measures_once_and_writes_the_page_again(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sagemaker, "SMALL", replace(TINY, rounds=1, batch=30))
    monkeypatch.setattr(sagemaker, "classifier_of", partial(tiny, classes=10))
    file = data / "found.json"
    main(["--small", "--device", "cpu", "--data", str(data), "--json", str(file)])
    content = json.loads(file.read_text())
    assert content["images"] == [180, 20, 30]
    assert [found["round"] for found in content["rows"]] == [0, 1]
    assert content["setting"]["count"] == 4
    page = file.with_suffix(".md").read_text()
    assert "(found.png)" in page
    assert file.with_suffix(".png").is_file()
    assert conclusion(content) in capsys.readouterr().out

    monkeypatch.setattr(sagemaker, "run", None)
    file.with_suffix(".md").unlink()
    file.with_suffix(".png").unlink()
    main(["--page", "--json", str(file)])
    assert file.with_suffix(".md").read_text() == page
    assert file.with_suffix(".png").is_file()
    assert json.loads(file.read_text()) == content


def test_without_images_the_cure_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("LIGHTNING_PRUNE_DATA", raising=False)
    with pytest.raises(SystemExit):
        main(["--small"])
    assert "set LIGHTNING_PRUNE_DATA or give --data" in capsys.readouterr().err
