"""The benchmark on CIFAR-10, on random images: cells, targets, tables."""

import doctest
import io
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cifar10
import pytest
import torch
from common import cifar_methods, cifar_table
from common.cells import DENSE, SCRATCH, SCRATCH_FULL, TRAINED_ON, Cell, Setting, draw_anew, fit, height, row, run
from common.cifar_methods import CHANNELS, DOCUMENTED, EXPERT, OURS, WEIGHTS, amount_at, macs_of_layers
from common.cifar_table import ORDER, against, grids, judged, page, percent, remarks
from common.images import Batches, Images, accuracy, augmented, balanced, decode, held_out, normalized
from PIL import Image
from torch import nn

from lightning_prune.network.example_input import Example
from lightning_prune.network.size import count_macs
from lightning_prune.tasks import CifarResNet

TINY = Setting(
    train_images=40, test_images=20, batch=8, dense_epochs=1, tuning_epochs=3, rates=(0.01, 0.05), device="cpu"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ten classes of random images, and random weights; what is decoded is kept beside them."""
    root = tmp_path_factory.mktemp("data")
    (root / "cifar10-jpeg").mkdir()
    (root / "pretrained").mkdir()
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 10), ("test", 3)):
        with zipfile.ZipFile(root / "cifar10-jpeg" / f"{split}.zip", "w") as archive:
            for kind in "abcdefghij":
                for number in range(count):
                    buffer = io.BytesIO()
                    pixels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
                    Image.fromarray(pixels.numpy()).save(buffer, "JPEG")
                    archive.writestr(f"{split}/{kind}/{number:04}.jpg", buffer.getvalue())
    torch.manual_seed(0)
    state = {f"module.{name}": value for name, value in CifarResNet(20).state_dict().items()}
    torch.save({"state_dict": state}, root / "pretrained" / "resnet20-12fca82f.th")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(root))
        yield root


@pytest.fixture(scope="module")
def dense(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("dense") / "dense.pt"
    run(Cell("", 20, DENSE, 0.0, 0), TINY, data, file)
    return file


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The command with three cells of a tiny setting; notes which of them are run."""
    chosen = [Cell("", 20, DENSE, 0.0, 0), *(Cell("weights", 20, m, 0.9, 0) for m in ("cubic magnitude", EXPERT))]
    done: list[Cell] = []

    def noted(cell: Cell, setting: Setting, data: Path, folder: Path, scratch: bool) -> list[dict[str, Any]]:
        done.append(cell)
        start = cifar10.start_of(cell, setting, folder)
        start.touch()
        return [figures(cell.table, cell.method, cell.goal, cell.seed, 0.5)]

    monkeypatch.setattr(cifar10, "cells", lambda *_: chosen)
    monkeypatch.setattr(cifar10, "one", noted)
    return done


def figures(table: str, method: str, goal: float, seed: int, accuracy: float) -> dict[str, Any]:
    return {
        "table": table, "depth": 20, "method": method, "goal": goal, "seed": seed, "accuracy": accuracy, "macs": 1,
        "speed_up": goal - 0.01, "params": 1, "sparsity": goal, "seconds": 60.0, "commit": "abc",
    }  # fmt: skip


# --- images


def test_images_of_an_archive_in_order(data: Path) -> None:
    images = decode(data / "cifar10-jpeg" / "test.zip")
    assert images.pixels.shape == (30, 3, 32, 32)
    assert images.pixels.dtype == torch.uint8
    assert images.labels.tolist() == [kind for kind in range(10) for _ in range(3)]
    with zipfile.ZipFile(data / "cifar10-jpeg" / "test.zip") as archive:
        wanted = Image.open(io.BytesIO(archive.read("test/b/0001.jpg"))).getpixel((5, 7))
    assert tuple(images.pixels[4, :, 7, 5].tolist()) == wanted


def test_subsets_by_hand() -> None:
    images = Images(torch.arange(60).view(60, 1, 1, 1), torch.arange(60) % 3)
    assert balanced(images, 6).pixels.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    train, decides = held_out(images)
    assert decides.pixels.flatten().tolist() == [27, 28, 29, 57, 58, 59]  # the 10th and the 20th of each class
    assert sorted([*train.pixels.flatten().tolist(), 27, 28, 29, 57, 58, 59]) == list(range(60))
    assert balanced(images, None) is images


def test_crops_and_flips_are_those_of_single_images() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(1, 256, (64, 3, 32, 32), dtype=torch.uint8)
    found = augmented(pixels)
    flips, corners = set(), set()
    for image, result in zip(pixels, found, strict=True):
        padded = nn.functional.pad(image, (4, 4, 4, 4))
        crops = {(top, left): padded[:, top : top + 32, left : left + 32] for top in range(9) for left in range(9)}
        matches = [(False, place) for place, crop in crops.items() if torch.equal(crop, result)]
        matches += [(True, place) for place, crop in crops.items() if torch.equal(crop.flip(2), result)]
        assert len(matches) == 1
        flips.add(matches[0][0])
        corners.add(matches[0][1])
    assert flips == {False, True}
    assert len(corners) > 20


def test_batches_have_each_image_once_and_come_anew() -> None:
    torch.manual_seed(0)
    images = Images(torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.arange(20))
    batches = Batches(images, 4)
    passes = [torch.cat([labels for _, labels in batches]).tolist() for _ in range(2)]
    assert len(batches) == 5
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(20))
    assert passes[0] != passes[1]


def test_accuracy_by_hand() -> None:
    class Brightest(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    pixels = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
    pixels[torch.arange(5), torch.tensor([0, 1, 2, 0, 1])] = 255
    images = Images(pixels, torch.tensor([0, 1, 2, 1, 0]))
    assert accuracy(Brightest(), images, torch.device("cpu"), batch=2) == pytest.approx(0.6)
    white = normalized(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten().tolist()
    assert white == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


# --- cells


@pytest.mark.slow
@pytest.mark.parametrize(("method", "goal"), [(method, 2.0 if method == OURS else 4.0) for method in CHANNELS])
def test_channels_reach_their_multiply_accumulates(method: str, goal: float, data: Path, dense: Path) -> None:
    if method.startswith("Torch-Pruning"):
        pytest.importorskip("torch_pruning", reason="pip install -e '.[benchmarks]'")
    rows = run(Cell("channels", 20, method, goal, 0), TINY, data, dense)
    assert [found["method"] for found in rows] == ([OURS, SCRATCH, SCRATCH_FULL] if method == OURS else [method])
    for found in rows:
        assert found["speed_up"] == pytest.approx(goal, rel=0.02)
        assert found["macs"] == rows[0]["macs"]
        assert 0 <= found["accuracy"] <= 1
        assert found["params"] < 269722


@pytest.mark.slow
@pytest.mark.parametrize("method", WEIGHTS)
def test_weights_reach_their_sparsity(method: str, data: Path, dense: Path) -> None:
    (found,) = run(Cell("weights", 20, method, 0.9, 0), TINY, data, dense)
    if method == DOCUMENTED:
        assert found["sparsity"] > 0.995  # 0.9 of what is left, epoch by epoch, biases and norms included
    else:
        assert found["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert found["speed_up"] == 1


def test_other_multiply_accumulates_than_asked_for_are_refused(data: Path) -> None:
    network = CifarResNet(20)
    assert row(Cell("channels", 20, OURS, 1.015, 0), network, TINY, data, 0.0)["speed_up"] == 1
    with pytest.raises(AssertionError, match=r"40551040 of 40551040 MACs"):
        row(Cell("channels", 20, OURS, 1.03, 0), network, TINY, data, 0.0)


def test_layers_counted_by_themselves_are_what_the_package_counts() -> None:
    network = CifarResNet(20)
    assert sum(macs_of_layers(network).values()) == count_macs(network, Example.of(torch.zeros(1, 3, 32, 32)))


def test_examples_of_the_benchmark() -> None:
    for module in (cifar_methods, cifar_table):
        found = doctest.testmod(module)
        assert (found.attempted > 0, found.failed) == (True, 0)


def test_amounts_compound_to_the_goal() -> None:
    for epochs in (1, 3, 12):
        left = math.prod(1 - amount_at(epoch, 0.95, epochs) for epoch in range(epochs))
        assert left == pytest.approx(0.05)
    assert [amount_at(epoch, 0.9, 12) > 0 for epoch in range(12)] == [True] * 8 + [False] * 4


def test_a_network_that_was_measured_trains_in_train_mode() -> None:
    network = CifarResNet(8).eval()
    images = Images(torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.arange(20) % 10)
    fit(network, images, TINY, 2, 0, 0.01)
    assert int(network.get_buffer("bn1.num_batches_tracked")) == 2 * (20 // 8)


def test_the_learning_rate_by_hand() -> None:
    assert [height(t) for t in (0.0, 0.075, 0.15, 0.575, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_an_architecture_is_drawn_as_new_networks_are() -> None:
    torch.manual_seed(5)
    wanted = CifarResNet(20)
    network = CifarResNet(20)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 3.0)
    network.get_buffer("bn1.running_mean").fill_(2.0)
    draw_anew(network, seed=1)
    again = CifarResNet(20)
    draw_anew(again, seed=1)
    for (name, a), b, w in zip(
        network.state_dict().items(), again.state_dict().values(), wanted.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
        assert a.float().std(correction=0) == pytest.approx(float(w.float().std(correction=0)), rel=0.3), name


# --- the command


def test_what_is_finished_is_not_run_again(small: list[Cell], data: Path, tmp_path: Path) -> None:
    command = ["--small", "--data", str(data), "--json", str(tmp_path / "found.json"), "--work", str(tmp_path)]
    cifar10.main([*command, "--device", "cpu"])
    assert [cell.method for cell in small] == [DENSE, "cubic magnitude", EXPERT]
    cifar10.main([*command, "--device", "cpu"])
    assert len(small) == 3

    content = json.loads((tmp_path / "found.json").read_text())
    content["rows"] = [row for row in content["rows"] if row["method"] != EXPERT]
    (tmp_path / "found.json").write_text(json.dumps(content))
    cifar10.main([*command, "--device", "cpu", "--seconds", "-1"])
    assert len(small) == 3
    cifar10.main([*command, "--device", "cpu"])
    assert [cell.method for cell in small[3:]] == [EXPERT]
    assert len(json.loads((tmp_path / "found.json").read_text())["rows"]) == 3


def test_a_dense_network_that_is_gone_takes_its_rows_with_it(small: list[Cell], data: Path, tmp_path: Path) -> None:
    command = ["--small", "--data", str(data), "--json", str(tmp_path / "found.json"), "--device", "cpu"]
    cifar10.main([*command, "--work", str(tmp_path)])
    (other := tmp_path / "other").mkdir()
    cifar10.main([*command, "--work", str(other)])
    assert len(small) == 6
    assert len(json.loads((tmp_path / "found.json").read_text())["rows"]) == 3


def test_another_setting_is_refused(small: list[Cell], data: Path, tmp_path: Path) -> None:
    command = ["--data", str(data), "--json", str(tmp_path / "found.json"), "--work", str(tmp_path), "--device", "cpu"]
    cifar10.main([*command, "--small"])
    with pytest.raises(SystemExit, match="another setting"):
        cifar10.main(command)


@pytest.mark.slow
def test_cells_in_processes_of_their_own() -> None:
    chosen: list[Any] = [SimpleNamespace(method=method) for method in ("movement", DENSE, EXPERT)]
    work: Any = vars
    rows: list[Any] = list(cifar10.measure(chosen, work, workers=2, seconds=300))
    assert rows[0] == {"method": DENSE}
    assert sorted(row["method"] for row in rows) == sorted(["movement", DENSE, EXPERT])
    assert not any(row is vars(cell) for row in rows for cell in chosen)  # as it would be in this process
    assert list(cifar10.measure(chosen, work, workers=2, seconds=-1)) == []


def test_cells_of_both_commands() -> None:
    full = cifar10.cells(["channels", "weights"], [0, 1, 2], "full")
    assert len(full) == len(set(full)) == 3 * (2 * 2 + 2 * 3 * len(CHANNELS) + 3 * len(WEIGHTS))
    assert [cell.method for cell in full[:6]] == [DENSE] * 6
    assert {cell.depth for cell in cifar10.cells(["channels", "weights"], [0], "small")} == {20}
    medium = cifar10.cells(["channels", "weights"], [0, 1, 2], "medium")
    assert len(medium) == 3 * (2 + 3 * len(CHANNELS) + 3 * len(WEIGHTS))
    long = cifar10.cells(["channels", "weights"], [0], "long")
    assert {cell.depth for cell in long} == {56}
    assert len(long) == 2 + 3 * len(CHANNELS)


def test_some_cells_of_the_table(data: Path) -> None:
    command = ["--medium", "--data", str(data), "--methods", OURS, "movement", "--goals", "2.5", "0.9"]
    options = cifar10.options_of([*command, "--seeds", "1"])
    found = [(cell.table, cell.method, cell.goal, cell.seed) for cell in cifar10.wanted(options)]
    assert found == [
        ("", DENSE, 0.0, 1), ("", TRAINED_ON, 0.0, 1), ("channels", OURS, 2.5, 1), ("weights", "movement", 0.9, 1)
    ]  # fmt: skip
    assert options.json.name == "cifar10_medium.json"
    with pytest.raises(SystemExit):
        cifar10.options_of(["--medium", "--small", "--data", str(data)])
    with pytest.raises(SystemExit):
        cifar10.options_of(["--data", str(data), "--methods", "Torch-Prunning"])


def test_anew_forgets_rows_once_there_is_a_new_one(small: list[Cell], data: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    command = ["--data", str(data), "--json", str(file), "--work", str(tmp_path), "--device", "cpu"]
    cifar10.main([*command, "--seconds", "1e9"])
    before = file.read_text()
    cifar10.main([*command, "--small", "--anew", "--seconds", "-1"])
    assert (len(small), file.read_text()) == (3, before)
    cifar10.main([*command, "--small", "--anew"])
    assert len(small) == 6
    content = json.loads(file.read_text())
    assert (content["setting"]["train_images"], len(content["rows"])) == (1000, 3)


# --- the table


def test_table_by_hand() -> None:
    rows = [
        figures("", DENSE, 0.0, 0, 0.90), figures("", DENSE, 0.0, 1, 0.92),
        figures("channels", OURS, 2.0, 0, 0.90), figures("channels", OURS, 2.0, 1, 0.91),
        figures("channels", "Torch-Pruning", 2.0, 0, 0.88), figures("channels", "Torch-Pruning", 2.0, 1, 0.88),
        figures("channels", OURS, 4.0, 0, 0.80), figures("channels", "Torch-Pruning", 4.0, 0, 0.81),
        figures("weights", "movement", 0.9, 0, 0.7), figures("weights", "cubic magnitude", 0.9, 0, 0.85),
        figures("weights", EXPERT, 0.9, 0, 0.84),
    ]  # fmt: skip
    setting = {"train_images": None, "test_images": 100, "dense_epochs": 3, "tuning_epochs": 4, "batch": 64}
    content = {
        "rows": rows, "setting": setting | {"validation": False}, "versions": {"torch": "2"}, "workers": 1,
        "hardware": "cpu", "precision": "32-true", "date": "2026-01-01",
    }  # fmt: skip
    channels, weights = grids(content)
    assert channels == (  # with one seed, of 80 % on 100 images: standard error 4
        "ResNet-20, test accuracy in % (dense 91.0 ± 1.4)",
        ["", "2 times fewer MACs", "4 times fewer MACs"],
        [
            [OURS, "90.5 ± 0.7 at 1.99x", "80.0 at 3.99x"],
            ["Torch-Pruning", "88.0 ± 0.0 at 1.99x", "81.0 at 3.99x"],
            ["lightning_prune less Torch-Pruning", "+2.5", "-1.0: level"],
        ],
        [f"Not yet run: {'; '.join(m for m in ORDER['channels'] if m not in (OURS, 'Torch-Pruning'))}."],
    )
    assert weights[1:] == (
        ["", "90% of the weights zero"],
        [
            ["cubic magnitude", "85.0 at 90.0 %"],
            ["movement", "70.0 at 90.0 %"],
            [EXPERT, "84.0 at 90.0 %"],
            [f"our best of 2, picked on these images, less {EXPERT}", "+1.0 (cubic magnitude): level"],
        ],
        [f"Not yet run: learning rate rewinding; RigL, cubic; {DOCUMENTED}."],
    )
    text = page(content)
    assert "\n| Torch-Pruning | 88.0 ± 0.0 at 1.99x | 81.0 at 3.99x |\n" in text
    assert f"RigL, cubic; {DOCUMENTED}.\n\nAll training images" in text
    assert "2 seed(s); 11 minutes of training" in text
    assert "commit abc" in text


def test_only_seeds_that_both_have_are_compared() -> None:
    rows = [figures("channels", OURS, 2.0, seed, 0.9) for seed in (0, 1)]
    rows += [figures("channels", "Torch-Pruning", 2.0, seed, accuracy) for seed, accuracy in ((1, 0.9), (2, 0.1))]
    assert against(rows, (OURS,), "Torch-Pruning", 2.0, 100) == "+0.0: level"
    assert against(rows, (OURS,), "Torch-Pruning", 4.0, 100) == ""
    assert percent([]) == ""


@pytest.mark.parametrize(
    ("theirs", "images", "shown"),  # standard error of 83 %: 3.8 points on 100 images, 0.4 on 10,000
    [(0.83, 100, "-3.0: level"), (0.83, 10_000, "-3.0: Torch-Pruning is ahead"), (0.75, 100, "+5.0")],
)
def test_less_than_the_standard_error_is_level(theirs: float, images: int, shown: str) -> None:
    rows = [figures("channels", OURS, 2.0, 0, 0.8), figures("channels", "Torch-Pruning", 2.0, 0, theirs)]
    assert against(rows, (OURS,), "Torch-Pruning", 2.0, images) == shown


def test_images_that_are_judged() -> None:
    for images, validation, wanted in ((100, False, 100), (None, False, 10_000), (None, True, 5_000)):
        assert judged({"setting": {"test_images": images, "validation": validation}}) == wanted


def test_movement_at_chance_level_is_explained() -> None:
    rows = [figures("weights", method, 0.8, 0, 0.5) for method in WEIGHTS]
    assert remarks(rows, "weights") == []
    rows += [figures("weights", "movement", goal, 0, share) for goal, share in ((0.9, 0.14), (0.95, 0.16))]
    (remark,) = remarks(rows, "weights")
    assert remark.startswith("Movement is at chance level with 90% of the weights zero: ")
    target = remark.split("](../../docs/pages/reference/methods.md#")[1].split(")")[0]
    headings = (Path(__file__).parents[2] / "docs/pages/reference/methods.md").read_text(encoding="utf-8").splitlines()
    assert target in [line[4:].lower().replace(" ", "-") for line in headings if line.startswith("### ")]
