"""The benchmarks of speed, scale and MNIST: what they measure, on small things."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import mnist
import pytest
import scale
import speed
import torch
from common.resources import child
from helpers.training import curves
from matplotlib.figure import Figure
from mnist import SCRATCH, TRAINED, TwentyThousand, draw, lines, text
from scale import cells_of as scale_cells
from scale import event, stack, steps
from speed import cells_of, times, variants
from torch import nn

ABOUT = {"date": "2026-01-02", "commit": "abc", "versions": {"torch": "9"}, "hardware": "a machine", "threads": 1}


def row(method: str, sparsity: float, seed: int, accuracy: float, size: int) -> dict[str, object]:
    return {"method": method, "sparsity": sparsity, "seed": seed, "accuracy": accuracy, "bytes": size}


def test_mnist_by_hand(tmp_path) -> None:
    rows = [
        row("dense", 0.0, 0, 0.9, 4096), row("dense", 0.0, 1, 0.92, 4096), row("dense, trained on", 0.0, 0, 0.95, 4096),
        row(TRAINED, 0.5, 0, 0.8, 2048), row(TRAINED, 0.5, 1, 0.8, 2048), row(SCRATCH, 0.5, 0, 0.7, 1024),
    ]  # fmt: skip
    assert lines(rows) == [
        ["dense", "0%", "91.00 ± 1.41", "4.0 KiB", "1.00"],
        ["dense, trained on", "0%", "95.00", "4.0 KiB", "1.00"],
        [TRAINED, "50%", "80.00 ± 0.00", "2.0 KiB", "2.00"],
        [SCRATCH, "50%", "70.00", "1.0 KiB", "4.00"],
    ]
    page = text({**ABOUT, "images": {"train": 9, "test": 3}, "rows": rows}, "some.png")
    assert f"| {TRAINED} | 50% | 80.00 ± 0.00 | 2.0 KiB | 2.00 |\n" in page
    assert "\n\n![Size and accuracy](some.png)\n\n9 training images, 3 test images, 2 seed(s). 2026-01-02" in page
    assert page.endswith("2026-01-02, commit abc; a machine, 1 thread; torch 9.\n")


def test_mnist_draws_size_and_accuracy(tmp_path: Path, saved: list[Figure]) -> None:
    """Means over seeds; both begin at the dense network that was trained as long."""
    rows = [
        row("dense", 0.0, 0, 0.5, 9), row("dense, trained on", 0.0, 0, 0.95, 4096), row(TRAINED, 0.5, 0, 0.8, 1024),
        row(TRAINED, 0.5, 1, 0.9, 3072), row(TRAINED, 0.9, 0, 0.6, 1024), row(SCRATCH, 0.5, 0, 0.7, 1536),
    ]  # fmt: skip
    draw(rows, tmp_path / "mnist.png")
    size, accuracy = saved[0].axes
    assert curves(size) == {TRAINED: ([0, 0.5, 0.9], [4, 2, 1]), SCRATCH: ([0, 0.5], [4, 1.5])}
    assert curves(accuracy) == {
        TRAINED: ([0, 0.5, 0.9], pytest.approx([95, 85, 60])),
        SCRATCH: ([0, 0.5], pytest.approx([95, 70])),
    }
    assert (tmp_path / "mnist.png").stat().st_size > 10_000


def test_mnist_network() -> None:
    assert TwentyThousand()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_networks_take_turns() -> None:
    calls: list[int] = []

    class Notes(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            calls.append(self.number)
            return images

    found = times([Notes(0), Notes(1), Notes(2)], torch.zeros(1), repeats=4)
    assert [len(own) for own in found] == [4, 4, 4]
    assert calls[:9] == [0, 1, 2, 1, 2, 0, 2, 0, 1]
    assert all(calls.count(number) == 9 for number in range(3))  # five to warm up


@pytest.mark.slow
def test_speed_compares_the_same_cut() -> None:
    found = list(variants("mobilenet_v2"))
    assert [variant.kind for variant in found] == ["dense", *["masks", "channels", "round_to=8"] * 3]
    assert {variant.macs for variant in found if variant.kind in ("dense", "masks")} == {300_774_272}  # as published
    dense, masks, channels = (
        next(variant.network for variant in found if variant.kind == kind) for kind in ("dense", "masks", "channels")
    )
    sizes = [sum(p.numel() for p in net.parameters()) for net in (dense, masks, channels)]
    assert sizes[0] == sizes[1] > sizes[2]
    macs = [variant.macs for variant in found if variant.kind == "channels"]
    assert macs == sorted(macs, reverse=True)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(masks(images), channels(images), rtol=1e-3, atol=1e-4)


def test_speed_by_hand() -> None:
    cells = {
        "network": "n", "batch": 1, "mode": "eager", "share": 0.5, "kind": "channels", "macs": 1.5e9,
        "median_ms": 2.0, "p99_ms": 3.0, "speed_up": 2.5, "ideal": 4.0, "arrives": 0.5,
    }  # fmt: skip
    assert cells_of(cells) == ["n", "1", "eager", "50%", "channels", "1,500 M", "2.00", "3.00", "2.50", "4.00", "50%"]
    assert cells_of({**cells, "arrives": None})[-1] == ""


def test_scale() -> None:
    assert sum(p.numel() for p in stack(10**6, "meta").parameters()) == pytest.approx(10**6, rel=0.01)
    found = {**steps(10**4, "cpu"), **event(10**4, "cpu", "masks"), **event(10**4, "cpu", "channels")}
    assert json.loads(json.dumps(found)) == found
    assert all(found[name] > 0 for name in ("step_s", "masked_step", "masks_s", "channels_s"))
    shown = scale_cells({**found, "parameters": 10**4, "network_bytes": 4 * 10**4})
    assert shown[0] == "10,000"
    assert len(shown) == 8


def speed_row(network: str, batch: int, kind: str, share: float) -> dict[str, Any]:
    return {
        "network": network, "batch": batch, "mode": "eager", "share": share, "kind": kind, "macs": 1e6,
        "median_ms": 2.0, "p99_ms": 3.0, "speed_up": 1 + share, "ideal": 2.0, "arrives": 0.5,
    }  # fmt: skip


SCALE_ROW = {
    "parameters": 10, "network_bytes": 40, "step_s": 1.0, "masked_step": 1.0, "masks_s": 1.0, "masks_bytes": 0,
    "channels_s": 1.0, "channels_bytes": 0,
}  # fmt: skip
SPEED_ROWS = [speed_row("resnet18", 1, kind, share) for kind in ("dense", "masks", "channels") for share in (0.2, 0.5)]


@pytest.mark.parametrize(
    ("script", "function", "rows"),
    [
        (mnist, "rows_of", [row("dense", 0.0, 0, 0.9, 4096), row(TRAINED, 0.5, 0, 0.8, 2048)]),
        (speed, "rows_of", SPEED_ROWS),
        (scale, "row_of", SCALE_ROW),
    ],
    ids=["mnist", "speed", "scale"],
)
@pytest.mark.parametrize("small", [True, False])
def test_a_small_run_has_files_of_its_own(
    script: Any, function: str, rows: Any, small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    monkeypatch.setattr(script, function, lambda *_: rows)
    monkeypatch.setenv("LIGHTNING_PRUNE_DATA", str(tmp_path))
    monkeypatch.setattr(mnist, "images", lambda *_: [0] * 7)
    if script is speed:  # it collects garbage after each
        monkeypatch.setitem(speed.SETTINGS, "full", speed.SETTINGS["small"])
    script.main(["--small"] * small)
    stem = f"{script.__name__}{'_small' * small}"
    assert {file.name for file in tmp_path.iterdir()} == {f"{stem}.json", f"{stem}.md", f"{stem}.png"}
    content = json.loads((tmp_path / f"{stem}.json").read_text())
    assert content["seconds"] >= 0
    assert content["rows"][0] == (rows[0] if isinstance(rows, list) else rows)
    assert f"]({stem}.png)" in (tmp_path / f"{stem}.md").read_text()


def test_another_run_of_speed_needs_a_file_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(["--small", "--networks", "vit_b_16"])
    assert "--networks makes another run of the small one: give --json as well" in capsys.readouterr().err


def test_speed_has_a_panel_for_each_network_and_way(tmp_path: Path) -> None:
    for count, batches in ((1, [1]), (2, [1, 32])):
        found = [
            speed_row(network, batch, kind, share)
            for network in ("a", "b") for batch in batches for kind in ("dense", "channels") for share in (0.2, 0.5)
        ]  # fmt: skip
        speed.draw(found, tmp_path / f"{count}.png")
    heights = [int.from_bytes((tmp_path / f"{count}.png").read_bytes()[20:24], "big") for count in (1, 2)]
    assert heights[1] == pytest.approx(heights[0] + 2.8 * 150, abs=2)


def test_speed_draws_each_cut_beside_the_ideal(tmp_path: Path, saved: list[Figure]) -> None:
    found = [
        {**speed_row(network, 1, kind, share), "speed_up": times * share, "ideal": 20 * share}
        for network, factor in (("a", 1), ("b", 10))
        for kind, times in (("dense", 0), ("masks", factor), ("channels", 4 * factor), ("round_to=8", 6 * factor))
        for share in (0.25, 0.5)
    ]
    speed.draw(found, tmp_path / "speed.png")
    first, second = saved[0].axes
    assert (first.get_title(), second.get_title()) == ("a, batch 1, eager", "b, batch 1, eager")
    shares = [0.25, 0.5]
    assert curves(first) == {
        "masks": (shares, [0.25, 0.5]), "channels": (shares, [1, 2]), "ideal": (shares, [5, 10]),
        "round_to=8": (shares, [1.5, 3]),
    }  # fmt: skip
    assert curves(second)["channels"] == (shares, [10, 20])


def test_scale_draws_time_memory_and_what_masks_add_to_a_step(tmp_path: Path, saved: list[Figure]) -> None:
    sizes = [10, 100]
    rows = [
        {
            "parameters": size, "network_bytes": size * 10**6, "step_s": 0.1 * size, "masked_step": 1 + 1 / size,
            "masks_s": 0.2 * size, "masks_bytes": 2 * size * 10**6, "channels_s": 0.3 * size,
            "channels_bytes": 3 * size * 10**6,
        }
        for size in sizes
    ]  # fmt: skip
    scale.draw(rows, tmp_path / "scale.png")
    times, memory, overhead = saved[0].axes
    assert (times.get_ylabel(), memory.get_ylabel(), overhead.get_ylabel()) == ("seconds", "MB", "ratio")
    drawn = {"a training step": 0.1, "masks": 0.2, "channels": 0.3}
    assert curves(times) == {name: (sizes, [factor * size for size in sizes]) for name, factor in drawn.items()}
    drawn = {"the network": 1, "masks": 2, "channels": 3}
    assert curves(memory) == {name: (sizes, [factor * size for size in sizes]) for name, factor in drawn.items()}
    assert curves(overhead)["with masks"] == (sizes, [1.1, 1.01])
    assert curves(overhead)["without"][1] == [1, 1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured on Linux")
def test_scale_sees_memory_that_was_free_before() -> None:
    """Scores and cuts stand beside whole layers, of 5 MB here; what imports have freed must not hide that."""
    found = child(partial(event, 10**7, "cpu", "channels"), exact_memory=True)
    assert found["channels_bytes"] > 4 * 10**6
