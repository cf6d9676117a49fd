"""The run of all benchmarks, with scripts that measure nothing, and what it has written into this repository."""

import json
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import run_all
from common import cifar_table, results_page
from common import provenance as _provenance
from common.cells import DENSE, TRAINED_ON
from common.figures import figures, fill
from common.quiet import quiet
from common.results_page import PARTS, criteria_page, results
from common.tables import markdown, page
from common.verdicts import lost, verdict, verdicts
from mnist import TRAINED

ROOT = Path(__file__).parents[2]
ABOUT = {"date": "2026-01-02", "commit": "abc", "versions": {"torch": "9"}, "hardware": "a machine", "threads": 1}
CELLS = {  # of cifar10.py
    "workers": 1, "precision": "32-true",
    "setting": {
        "train_images": 1000, "test_images": 1000, "dense_epochs": 3, "tuning_epochs": 3, "batch": 40, "device": "cpu",
        "validation": False,
    },
}  # fmt: skip
NAMES = [part.name for part in PARTS]
SCRIPT = """
import json, sys
from pathlib import Path
name, arguments = Path(__file__).stem, sys.argv[1:]
with Path(__file__).with_name("calls").open("a") as file:
    file.write(f"{name} {' '.join(arguments)}\\n")
if name == FAILS:
    sys.exit(3)
file = Path(arguments[arguments.index("--json") + 1] if "--json" in arguments else
            Path(__file__).with_name("results") / (name + "_small" * ("--small" in arguments) + ".json"))
file.write_text(json.dumps({**ABOUT, "seconds": 90, "rows": []}))
if name != "criteria":
    file.with_suffix(".md").write_text(f"# {name}\\n\\n## A table\\n\\nfigures of {file.stem}\\n")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scripts that write files, of which ``speed.py`` fails, and a README above them."""
    benchmarks = tmp_path / "benchmarks"
    (benchmarks / "results").mkdir(parents=True)
    for name in NAMES:
        text = f"ABOUT, FAILS = {ABOUT | CELLS!r}, 'speed'\n{SCRIPT}"
        (benchmarks / f"{name}.py").write_text(text, encoding="utf-8")
    (tmp_path / "README.md").write_text("# A\n\n<!-- figures -->\n<!-- /figures -->\n\nB\n", encoding="utf-8")
    monkeypatch.setattr(run_all, "FOLDER", benchmarks)
    monkeypatch.setattr(run_all, "RESULTS", benchmarks / "results")
    monkeypatch.setattr(run_all, "fill", lambda readme, _: readme.replace("B", "C"))  # the figures need rows
    return benchmarks


def calls(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "calls").read_text().splitlines()]


# ---- running


def test_one_that_fails_does_not_stop_the_others(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_all.main(["--small"]) == 1
    assert [name for name, *_ in calls(folder)] == NAMES
    shown = capfd.readouterr()
    assert "==== speed: FAILED with exit status 3" in shown.out
    assert shown.err == "failed: speed\n"
    text = (folder / "RESULTS.md").read_text()
    assert "| `speed.py` | small | not yet run; its last run FAILED with exit status 3 |" in text
    assert "| `scale.py` | small | 2026-01-02, commit abc; a machine; 1.5 minutes |" in text
    assert "| `scale.py` | full | not yet run |" in text
    assert "`run_all.py --small`, wall time of each: cifar10 " in text
    assert (folder.parent / "README.md").read_text().endswith("C\n")


def test_small_runs_write_small_files_and_keep_nothing(folder: Path) -> None:
    run_all.main(["--small"])
    arguments = {name: rest for name, *rest in calls(folder)}
    assert arguments["mnist"] == ["--small"]
    assert arguments["sagemaker"] == arguments["speed"] == arguments["scale"] == ["--small", "--device", "cpu"]
    assert arguments["criteria"] == ["--seeds", "0", "--json", str(folder / "results" / "criteria_small.json")]
    *options, folder_of_run = arguments["cifar10"]
    assert options == ["--small", "--device", "cpu", "--anew", "--work"]
    assert not Path(folder_of_run).exists()
    written = {file.stem for file in (folder / "results").glob("*.json")}
    assert written == {*(f"{name}_small" for name in NAMES if name != "speed"), "run_all_small"}


def test_only_some_in_full(folder: Path) -> None:
    assert run_all.main(["--only", "scale", "mnist"]) == 0
    assert calls(folder) == [["mnist"], ["scale"]]
    assert run_all.main(["--only", "speed"]) == 1
    runs = json.loads((folder / "results" / "run_all.json").read_text())
    assert {name: run["exit"] for name, run in runs.items()} == {"mnist": 0, "scale": 0, "speed": 3}
    assert (folder / "RESULTS.md").read_text().count("figures of scale\n") == 1


def test_page_measures_nothing(folder: Path) -> None:
    assert run_all.main(["--page"]) == 0
    assert not (folder / "calls").exists()
    assert (folder / "RESULTS.md").is_file()


# ---- RESULTS.md


def test_nothing_was_run(tmp_path: Path) -> None:
    text = results(tmp_path)
    assert text.count("\nNot yet run.\n") == len(PARTS) + 2  # small runs; full ones that need no GPU
    assert text.count("\nNot yet run on a GPU.\n") == len(PARTS) - 2
    assert text.count(" | small | not yet run |") == text.count(" | full | not yet run |") == len(PARTS)
    assert "edium" not in text


def test_a_medium_run_stands_between_the_others(tmp_path: Path) -> None:
    (tmp_path / "cifar10_medium.json").write_text(json.dumps(CIFAR))
    text = results(tmp_path)
    heads = [line for line in text.splitlines() if line.startswith("### ")][:3]
    assert heads == ["### Small run", "### Medium run", "### Full run"]
    assert text.count("edium run") == 1
    assert "| `cifar10.py` | medium | 2026-01-02, commit abc; a machine; 6.0 minutes |" in text
    assert text.count("On a GPU: not yet run.") == 0


def test_a_page_becomes_a_section(tmp_path: Path) -> None:
    content = {**ABOUT, "device": "cpu", "seconds": 30, "rows": []}
    (tmp_path / "scale.json").write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=r"scale.md does not exist, but its JSON file does: run scale.py again"):
        results(tmp_path)
    (tmp_path / "scale.md").write_text("# Title\n\n## Part\n\n![Cost](scale.png)\n\nfooter\n")
    text = results(tmp_path)
    assert "### Full run\n\n#### Part\n\n![Cost](results/scale.png)\n\nfooter\n\nOn a GPU: not yet run.\n" in text
    assert "Title" not in text
    (tmp_path / "scale.json").write_text(json.dumps({**content, "device": "cuda"}))
    assert "On a GPU: not yet run." not in results(tmp_path)


def test_cifar_is_shown_from_the_json_file(tmp_path: Path) -> None:
    """A run that was interrupted has left the page of an earlier one, or none."""
    (tmp_path / "cifar10_small.json").write_text(json.dumps(CIFAR))
    (tmp_path / "cifar10_small.md").write_text("# CIFAR-10\n\nof an earlier run\n")
    text = results(tmp_path)
    assert "of an earlier run" not in text
    heading = "#### ResNet-20, test accuracy in % (dense 79.0; dense, trained on 80.0)"
    assert f"\n\n{heading}\n\n|  | 2.5 times fewer MACs |" in text
    assert "\n| Torch-Pruning | 60.0 at 2.50x | 55.0 at 4.00x |\n" in text
    assert "\n- ResNet-20, 2.5 times fewer MACs: **lightning_prune** is best" in text


def test_minutes_of_cells_at_the_same_time_are_of_training(tmp_path: Path) -> None:
    for workers, words in ((1, "6.0 minutes |"), (8, "6.0 minutes of training |")):
        (tmp_path / "cifar10_small.json").write_text(json.dumps({**CIFAR, "workers": workers}))
        assert f"a machine; {words}" in results(tmp_path)


def test_a_total_is_of_all_parts(tmp_path: Path) -> None:
    for name in NAMES[:-2]:
        results_page.note(tmp_path, "small", name, {"seconds": 30.0})
    assert results_page.times(tmp_path).endswith("speed 30 s; no total, as it has not yet run scale, criteria.")
    for name in NAMES[-2:]:
        results_page.note(tmp_path, "small", name, {"seconds": 60.0})
    assert results_page.times(tmp_path).endswith("criteria 60 s; together 4.0 minutes.")
    (tmp_path / "cifar10_small.json").write_text(json.dumps(CIFAR))  # six cells of a minute
    assert "cifar10 360 s" in results_page.times(tmp_path)
    assert results_page.times(tmp_path).endswith("together 9.5 minutes.")


def test_how_busy_the_machine_was() -> None:
    assert _provenance.in_words(ABOUT | {"load": 0.25}).startswith(
        "2026-01-02, commit abc; a machine, 1 thread, load 0.2 at"
    )
    for older in (ABOUT, ABOUT | {"load": None}):
        assert _provenance.in_words(older) == "2026-01-02, commit abc; a machine, 1 thread; torch 9."
    assert "on a machine, load 3.0 at the start, 32-true" in cifar_table.footer(CIFAR | {"load": 3.0})
    assert _provenance.provenance()["load"] >= 0


def test_criteria_by_hand() -> None:
    rows = [
        {"method": "dense", "granularity": "", "share": 0.0, "accuracy": 0.9},
        {"method": "Magnitude", "granularity": "weights", "share": 0.5, "accuracy": 0.8},
        {"method": "Random", "granularity": "weights", "share": 0.5, "accuracy": 0.7},
        {"method": "Taylor", "granularity": "channels", "share": 0.5, "accuracy": 0.6},
    ]
    text = criteria_page({**ABOUT, "rows": [row | {"seed": 0} for row in rows]})
    assert text.startswith("dense 90.0\n\n| validation accuracy, % | weights, 50 % removed |\n")
    assert "\n| Magnitude | 80.0 |\n| Random | 70.0 |\n\n" in text
    assert "| channels, 50 % removed |\n|---|---|\n| Taylor | 60.0 |\n\n1 seed(s). 2026-01-02" in text


# ---- who is ahead


def test_a_peer_is_ahead() -> None:
    points = {"lightning_prune": {0: 70.0, 1: 71.0}, "Torch-Pruning": {0: 72.0, 1: 75.0}, "plain L2": {0: 71.9, 1: 74}}
    assert verdict(points, 1000) == (
        "**Torch-Pruning** is best with 73.5 %; lightning_prune, the only one of this package, is 3.0 ± 1.4 points "
        "behind at 70.5 % (2 seeds)."
    )


def test_we_are_ahead_over_the_seeds_that_all_have() -> None:
    points = {"movement": {0: 60.0}, "ModelPruning by an expert": {0: 50.5, 1: 99.0}}
    assert verdict(points, 600) == (  # 100 * sqrt(0.6 * 0.4 / 600) = 2
        "**movement** is best with 60.0 %; ModelPruning by an expert, the only one of the peers, is 9.5 points behind "
        "at 50.5 % (1 seed; the standard error of an accuracy on 600 images is 2.0 points)."
    )
    assert verdict({"movement": {0: 60.0}, "ModelPruning by an expert": {1: 99.0}}, 600) == ""


def test_the_best_of_several_was_picked() -> None:
    points = {"movement": {0: 60.0}, "RigL, cubic": {0: 50.0}, "ModelPruning by an expert": {0: 40.0}}
    text = verdict(points, 600)
    assert text.startswith(
        "**movement** is best with 60.0 %, the best of 2 of this package; ModelPruning by an expert, "
    )
    assert text.endswith("is 2.0 points; the best of several methods is selected on these images).")


@pytest.mark.parametrize(("theirs", "words"), [(58.1, "is on a par at"), (57.9, "is 2.1 points behind at")])
def test_below_the_standard_error_is_level(theirs: float, words: str) -> None:
    text = verdict({"movement": {0: 60.0}, "ModelPruning by an expert": {0: theirs}}, 600)
    assert text.startswith(f"**movement** is {'highest' if 'par' in words else 'best'} with 60.0 %; ")
    assert f", the only one of the peers, {words} {theirs} % (" in text


@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_accuracies_are_level(seeds: int) -> None:
    points = {m: dict.fromkeys(range(seeds), 100.0) for m in ("lightning_prune", "Torch-Pruning")}
    assert "Torch-Pruning, the only one of the peers, is on a par at 100.0 %" in verdict(points, 1000)


def test_a_control_is_ahead() -> None:
    points = {"lightning_prune": {0: 70.0}, "Torch-Pruning": {0: 60.0}, "random channels": {0: 75.0}}
    assert verdict(points, 1000).startswith(
        "**random channels** is best with 75.0 %; lightning_prune, the only one of this package, is 5.0 points behind "
        "at 70.0 %; Torch-Pruning, the only one of the peers, is 15.0 points behind at 60.0 % (1 seed;"
    )


def cifar(method: str, accuracy: float, goal: float = 2.5, table: str = "channels") -> dict[str, Any]:
    return {
        "table": table, "depth": 20, "method": method, "goal": goal, "seed": 0, "accuracy": accuracy, "speed_up": goal,
        "seconds": 60.0, "commit": "abc",
    }  # fmt: skip


CIFAR: dict[str, Any] = {
    **ABOUT, **CELLS,
    "rows": [
        cifar("lightning_prune", 0.7), cifar("Torch-Pruning", 0.6), cifar("Torch-Pruning, distilled", 0.65),
        {**cifar("dense", 0.79, 0.0, ""), "seconds": 0.0}, cifar("dense, trained on", 0.8, 0.0, ""),
        cifar("lightning_prune", 0.5, 4.0), cifar("Torch-Pruning", 0.55, 4.0),
    ],
}  # fmt: skip


def test_what_is_lost_against_the_dense_network() -> None:
    points = {"lightning_prune": {0: 70.0, 1: 80.0}, "Torch-Pruning": {0: 75.0, 1: 71.0, 2: 9.0}, "plain L2": {}}
    text = " The dense network has {}."
    trained_on = "81.0 % when trained for as long (6.0 points more)"
    assert lost(points, {TRAINED_ON: {0: 80.0, 1: 82.0, 2: 1.0}}) == text.format(trained_on)
    assert lost(points, {DENSE: {0: 60.0}}) == text.format("60.0 % before pruning (no more)")
    both = {DENSE: {0: 60.0}, TRAINED_ON: {0: 80.0, 1: 82.0}}
    assert lost(points, both) == text.format(f"60.0 % before pruning (no more) and {trained_on}")
    assert lost(points, {DENSE: {2: 60.0}}) == lost(points, {}) == ""


def test_a_sentence_for_each_goal() -> None:
    assert verdicts(CIFAR)[0].endswith(
        "). The dense network has 79.0 % before pruning (9.0 points more) and 80.0 % when trained for as long (10.0 "
        "points more)."
    )
    assert [sentence[:58] for sentence in verdicts(CIFAR)] == [
        "ResNet-20, 2.5 times fewer MACs: **lightning_prune** is be",
        "ResNet-20, 4 times fewer MACs: **Torch-Pruning** is best w",
    ]


# ---- the README


def measured() -> dict[str, Any]:
    """Small runs with every cell that is quoted, and others."""
    speed = {"network": "resnet18", "mode": "eager", "batch": 1, "share": 0.5, "arrives": 0.4, "ideal": 3.5}
    mnist = {"method": TRAINED, "sparsity": 0.9, "seed": 0, "accuracy": 0.93, "bytes": 2048}
    return {
        "cifar10_small": CIFAR,
        "speed_small": {**ABOUT, "hardware": "a machine, 12 cores", "device": "cpu", "rows": [
            {**speed, "kind": "round_to=8", "speed_up": 2.0}, {**speed, "kind": "masks", "speed_up": 1.04},
            {**speed, "kind": "channels", "speed_up": 9.0}, {**speed, "kind": "round_to=8", "share": 0.75},
        ]},
        "mnist_small": {**ABOUT, "images": {"test": 2000}, "rows": [
            mnist, {**mnist, "seed": 1, "accuracy": 0.91}, {**mnist, "sparsity": 0.5, "bytes": 1},
            {"method": "dense, trained on", "sparsity": 0.0, "accuracy": 0.94, "bytes": 8192},
        ]},
    }  # fmt: skip


def test_each_resnet_has_a_figure_from_its_largest_run(tmp_path: Path) -> None:
    deep = {**CIFAR, "rows": [{**row, "depth": 56, "accuracy": row["accuracy"] + 0.1} for row in CIFAR["rows"]]}
    for name, content in (("cifar10_small", CIFAR), ("cifar10_medium", CIFAR), ("cifar10_long", deep)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    first, second = figures(tmp_path).splitlines()[2:]
    assert first.startswith("| ResNet-56 on CIFAR-10")
    assert "(long run) | 80.0 % | Torch-Pruning 70.0 %" in first
    assert second.startswith("| ResNet-20 on CIFAR-10")
    assert "(medium run) | 70.0 % |" in second


def test_figures_by_hand(tmp_path: Path) -> None:
    contents = measured()
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    _, _, accuracy, speed_up, size = figures(tmp_path).splitlines()
    assert accuracy == (
        "| ResNet-20 on CIFAR-10, 2.5 times fewer MACs, 3 epochs on 1,000 images: accuracy on 1,000 test images, "
        "1 seed (small run) | 70.0 % | Torch-Pruning 60.0 %, with distillation by lightning_prune 65.0 %; dense "
        "79.0 %, trained for as many epochs 80.0 % |"
    )
    assert "batch 1, a machine, 1 thread: speed-up (small run) | 2.0 times, 40% of the theoretical 3.5 | " in speed_up
    assert speed_up.endswith("| 1.0 times with the same channels masked |")
    assert size.endswith(
        "on 2,000 test images, 2 seeds (small run) | 4.0 times smaller, 92.0 ± 1.4 % accuracy | dense 8 KiB, 94.0 % |"
    )
    full = {**contents["mnist_small"], "rows": [{**row, "accuracy": 0.99} for row in contents["mnist_small"]["rows"]]}
    (tmp_path / "mnist.json").write_text(json.dumps(full))
    assert "test images, 2 seeds | 4.0 times smaller, 99.0" in figures(tmp_path)
    gpu = {**contents["speed_small"], "hardware": "a GPU", "device": "cuda"}
    compiled = [{**row, "mode": "compiled", "speed_up": 1 + row.get("speed_up", 0)} for row in gpu["rows"]]
    gpu["rows"] = [*gpu["rows"], *compiled]
    (tmp_path / "speed.json").write_text(json.dumps(gpu))
    text = (
        "batch 1, a GPU: speed-up | 2.0 times, 40% of the theoretical 3.5; 3.0 times with both networks compiled | 1.0 "
    )
    assert text in figures(tmp_path)


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("cifar10", ["lightning_prune"]), ("cifar10", ["Torch-Pruning"]), ("cifar10", ["Torch-Pruning, distilled"]),
        ("cifar10", ["dense"]), ("cifar10", ["dense, trained on"]), ("speed", ["round_to=8"]), ("speed", ["masks"]),
        ("speed", ["round_to=8", "masks", "channels"]), ("mnist", [TRAINED]), ("mnist", ["dense, trained on"]),
    ],
)  # fmt: skip
def test_a_figure_without_one_of_its_cells_is_left_out(name: str, quoted: list[str], tmp_path: Path) -> None:
    """And that of the small run shown instead, where it is whole."""
    whole = measured()[f"{name}_small"]
    rows = [row for row in whole["rows"] if row.get("method", row.get("kind")) not in quoted]
    assert len(rows) < len(whole["rows"])
    (tmp_path / f"{name}.json").write_text(json.dumps({**whole, "rows": rows}))
    assert len(figures(tmp_path).splitlines()) == 2
    (tmp_path / f"{name}_small.json").write_text(json.dumps(whole))
    assert figures(tmp_path).count("(small run)") == 1
    (tmp_path / f"{name}_medium.json").write_text(json.dumps(whole))
    assert (figures(tmp_path).count("(small run)"), figures(tmp_path).count("(medium run)")) == (0, 1)


def test_accuracies_of_the_readme_are_over_the_same_seeds(tmp_path: Path) -> None:
    more = {**CIFAR, "rows": [*CIFAR["rows"], cifar("lightning_prune", 0.1) | {"seed": 1}]}
    (tmp_path / "cifar10.json").write_text(json.dumps(more))
    assert "test images, 1 seed | 70.0 % | " in figures(tmp_path)


def test_a_place_for_figures() -> None:
    with pytest.raises(ValueError, match=r"no place for figures: write <!-- figures -->"):
        fill("# A README", ROOT)


def test_readme_has_the_figures_that_were_measured() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert fill(text, ROOT / "benchmarks" / "results") == text, "run `python benchmarks/run_all.py --page`"
    assert len(figures(ROOT / "benchmarks" / "results").splitlines()) == 2 + 4  # accuracy of two networks, time, size


def test_results_are_those_of_the_files() -> None:
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    assert results(ROOT / "benchmarks" / "results") == text, "run `python benchmarks/run_all.py --page`"
    linked = [line.split("](")[1].split(")")[0] for line in text.splitlines() if line.startswith(("![", "- ["))]
    assert linked
    assert [name for name in linked if not (ROOT / "benchmarks" / name).is_file()] == []


# ---- what the scripts share


def test_tables_and_pages() -> None:
    assert markdown(["a", "b"], [["1", "2"], ["3", "4"]]) == "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |"
    assert page("T", "one", "", "two") == "# T\n\none\n\ntwo\n"


def test_quiet(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    for name in ("lightning.fabric", "lightning.pytorch", log.name):
        caplog.set_level(logging.INFO, logger=name)  # which also restores it
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        quiet()
        warnings.warn("of something", stacklevel=1)
        log.warning("of little use")
        log.error("of use")
    assert found == []
    assert [record.message for record in caplog.records] == ["of use"]


def test_elsewhere_names_files_that_are_there() -> None:
    assert [name for name in results_page.ELSEWHERE if not (ROOT / "benchmarks" / "results" / name).is_file()] == []


def test_documentation_counts_the_networks_that_are_as_they_should_be() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "libraries.json").read_text(encoding="utf-8"))["rows"]
    good = Counter(row["library"] for row in rows if not row["problems"])
    text = (ROOT / "docs" / "pages" / "reference" / "support.md").read_text(encoding="utf-8")
    counts = [good[name] for name in ("timm", "transformers", "segmentation_models_pytorch", "monai")]
    sentence = (
        "a small network of each of the {} families of timm, {} networks of transformers, {} of {} and {} of monai"
    )
    assert sentence.format(*counts[:3], "segmentation_models_pytorch", counts[3]) in text
    assert len(rows) == sum(good.values())
