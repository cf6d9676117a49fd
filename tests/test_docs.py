"""The documentation: code of every page runs, links between pages hold, and the reference is complete."""

import importlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import lightning_prune
from lightning_prune import IterativePruning, prune_once
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.callbacks.command_line import PruneCLI
from lightning_prune.coupling.rules import registry
from lightning_prune.coupling.rules.lookup import rule_of
from lightning_prune.schedules import Rounds
from lightning_prune.tasks import DigitsData, ImageClassifier

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages"
GUIDES = sorted([*PAGES.glob("how-to/*.md"), *PAGES.glob("tutorials/*.md")])
SCRIPTS = {"several-gpus"}  # Lightning starts further processes, which run the same file
SHORT = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def unwrapped(commands: str) -> list[str]:
    """One command per line, without the backslashes that continue them."""
    return commands.replace("\\\n", " ").splitlines()


def names(pages: list[Path]) -> list[str]:
    return [page.stem for page in pages]


def write_images(root: Path, splits: dict[str, int], classes: int = 10) -> None:
    random = np.random.default_rng(0)
    for split, count in splits.items():
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def run_command(arguments: list[str]) -> PruneCLI:
    with redirect_stdout(io.StringIO()):
        return PruneCLI(args=[*arguments, *SHORT])


def hooks(name: str) -> ModuleType:
    """A file of ``docs/``."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# ---- code


WITH_PYTHON = [page for page in GUIDES if blocks(page, "python")]


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in WITH_PYTHON if p.stem not in SCRIPTS], ids=lambda page: page.stem)
def test_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page.name}, block {number} of Python", "exec"), namespace)
    pruning = namespace.get("pruning")
    if isinstance(pruning, IterativePruning):
        assert pruning.sparsity > 0.2


@pytest.mark.slow
def test_python_of_several_gpus_runs_on_two_processes(tmp_path: Path) -> None:
    (block,) = blocks(PAGES / "how-to" / "several-gpus.md", "python")
    assert 'ACCELERATOR, DEVICES = "cpu", 2' in block
    (tmp_path / "script.py").write_text(block, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr + done.stdout
    assert "Pruning event 2" in done.stderr + done.stdout


def test_yaml_of_the_how_to_runs_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGES / "how-to" / "yaml.md"
    (recipe,) = blocks(page, "yaml")
    Path("photos.yaml").write_text(recipe, encoding="utf-8")
    write_images(tmp_path / "photos", {"train": 1, "val": 1})
    cli = run_command(["fit", "--config", "photos.yaml", "--data.init_args.batch_size=2"])
    assert cli.model.network.conv1.in_channels == 3
    assert cli.trainer.global_step == 1
    assert {"train_loss", "val_acc"} <= set(cli.trainer.callback_metrics)
    callbacks = re.findall(r"- class_path: (\w+)", recipe)
    assert len(callbacks) == 3
    assert set(callbacks) <= {type(callback).__name__ for callback in cli.trainer.callbacks}  # type: ignore[attr-defined]


def test_commands_of_the_yaml_tutorial_run_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGES / "tutorials" / "yaml-and-tensorboard.md"
    (recipe,) = blocks(page, "yaml")
    Path("digits.yaml").write_text(recipe, encoding="utf-8")
    commands = [line.split() for block in blocks(page, "sh") for line in unwrapped(block) if "digits.yaml" in line]
    fits = [command[1:] for command in commands if command[:2] == ["lightning-prune", "fit"]]
    assert len(fits) == 2
    pruning = [c for fit in fits for c in run_command(fit).trainer.callbacks if isinstance(c, IterativePruning)]
    assert [str(callback.pruner.budget) for callback in pruning] == [str(Sparsity(0.8)), str(Sparsity(0.95))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_a_how_to_begins_with_complete_code(page: Path) -> None:
    if page.parent.name == "how-to":
        first = text_of(page).split("\n", 2)[2]
        assert first.startswith("```python\n")
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


def test_each_task_has_a_page() -> None:
    assert names([page for page in GUIDES if page.parent.name == "how-to"]) == [
        "choose-a-method", "logging", "prune-once", "prune-while-training", "resume-and-load", "several-gpus",
        "start-from-checkpoint", "yaml",
    ]  # fmt: skip
    assert text_of(PAGES / "how-to" / "yaml.md").split("\n", 2)[2].startswith("```yaml\n")


# ---- links and names


def test_links_between_pages_and_images_exist() -> None:
    broken = []
    for page in PAGES.rglob("*.md"):
        for target in re.findall(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)", text_of(page)):
            if not (page.parent / target).is_file():
                broken.append(f"{page.relative_to(PAGES)}: {target}")
    assert broken == []


def test_the_navigation_names_every_page_once() -> None:
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(PAGES)) for page in PAGES.rglob("*.md"))


def test_files_that_pages_name_exist() -> None:
    pattern = r"(?<![\w/.])((?:recipes|examples|benchmarks|docs)/[\w./]*\w)"
    found = {path for page in PAGES.rglob("*.md") for path in re.findall(pattern, text_of(page))}
    assert len(found) > 5
    assert {path for path in found if not (ROOT / path).exists()} == set()


# ---- reference


@pytest.mark.parametrize("name", ["criteria", "schedules", "budgets", "callbacks", "tasks"])
def test_api_page_of_a_package_shows_all_its_names(name: str) -> None:
    page = text_of(PAGES / "reference" / "api" / f"{name}.md")
    (filters,) = re.findall(r"filters: \[(.*)\]", page)
    hidden = [re.compile(pattern) for pattern in re.findall(r"'!(.*?)'", filters)]
    assert f"::: lightning_prune.{name}\n" in page
    shown_apart = re.findall(rf"^::: lightning_prune\.{name}\.(\w+)$", page, re.MULTILINE)
    for public in importlib.import_module(f"lightning_prune.{name}").__all__:
        left_out = any(pattern.search(public) for pattern in hidden)
        assert left_out == (public in (*shown_apart, "CRITERIA")), public


def test_api_page_of_the_package_shows_all_its_names() -> None:
    shown = {
        path.rsplit(".", 1)[1]: path
        for page in (PAGES / "reference" / "api").glob("*.md")
        for path in re.findall(r"^::: (lightning_prune\.[\w.]+)$", text_of(page), re.MULTILINE)
    }
    callbacks = importlib.import_module("lightning_prune.callbacks").__all__
    assert {name for name in lightning_prune.__all__ if name not in {*shown, *callbacks}} == set()
    for path in shown.values():
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path


def test_metrics_page_names_what_the_logging_how_to_names() -> None:
    rows = re.findall(r"^\| (`.+?) \|", text_of(PAGES / "how-to" / "logging.md"), re.MULTILINE)
    metrics = {name for row in rows for name in re.findall(r"`([a-z]+/[^`]+)`", row)}
    assert len(metrics) > 4
    reference = text_of(PAGES / "reference" / "metrics.md")
    assert {name for name in metrics if f"`{name}`" not in reference} == set()


def test_recipes_page_is_filled_from_the_methods() -> None:
    assert "<!-- recipes" in text_of(PAGES / "reference" / "recipes.md")
    fill = hooks("hooks").on_page_markdown
    table = fill("a\n\n<!-- recipes -->\n\nb")
    assert table.startswith("a\n\n| ")
    assert table.endswith("|\n\nb")
    assert "](" not in table
    recipes = [f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")]
    assert len(recipes) > 40
    assert {recipe for recipe in recipes if f"| `{recipe}` |" not in table} == set()
    blocks_only = fill("<!-- recipes: blocks -->")
    assert "block_influence" in blocks_only
    assert "gradual_magnitude" not in blocks_only
    with pytest.raises(ValueError, match="no method prunes layers; use weights, channels or blocks"):
        fill("<!-- recipes: layers -->")


# ---- the trade-off figure


def test_points_of_the_tradeoff_figure_by_hand() -> None:
    rows = [
        {"method": "a", "sparsity": 0.5, "bytes": 10, "accuracy": 0.9},
        {"method": "a", "sparsity": 0.5, "bytes": 30, "accuracy": 0.8},
        {"method": "a", "sparsity": 0.0, "bytes": 90, "accuracy": 1.0},
        {"method": "b", "sparsity": 0.5, "bytes": 1, "accuracy": 0.1},
    ]
    figure = hooks("tradeoff_figure")
    ((name, (large, small)),) = figure.curves(rows, {"a": "A", "missing": "C"}, "bytes").items()
    assert (name, large.size, large.accuracy, large.deviation) == ("A", 90, 100.0, 0.0)
    assert (small.size, small.accuracy) == (20, pytest.approx(85.0))
    assert small.deviation == pytest.approx(50**0.5)


def test_tradeoff_figure_is_drawn_from_the_results(tmp_path: Path, saved: list[Figure]) -> None:
    figure = hooks("tradeoff_figure")
    figure.draw(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    ((left, right),) = [drawn.axes for drawn in saved]
    assert left.get_xlabel() == "MACs of one forward pass, millions"
    assert right.get_xlabel() == "compressed state dict, KiB"
    rows = figure.content("cifar10_small")["rows"]
    (own,) = [row for row in rows if (row["method"], row["goal"]) == ("lightning_prune", 2.5)]
    drawn = [point for line in left.lines for point in zip(*line.get_data(), strict=True)]
    assert (own["macs"] / 1e6, 100 * own["accuracy"]) in drawn


# ---- CONTRIBUTING


def example(section: str) -> dict[str, Any]:
    """What the code of a section of CONTRIBUTING.md defines."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"^## {section}\n.*?^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {"__name__": "contributed"}
    sys.modules["contributed"] = ModuleType("contributed")  # dataclasses look their module up
    exec(compile(block, f"CONTRIBUTING.md, {section}", "exec"), namespace)
    return namespace


def small_network() -> nn.Sequential:
    first, second, last = (nn.Linear(*shape, bias=False) for shape in ((3, 8), (8, 6), (6, 2)))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


def test_contributed_criterion_ranks_as_magnitude_does() -> None:
    energy, magnitude = small_network(), small_network()
    magnitude.load_state_dict(energy.state_dict())
    prune_once(energy, torch.zeros(1, 3), criterion=example("A new criterion")["Energy"](), budget=Ratio(0.5))
    prune_once(magnitude, torch.zeros(1, 3), criterion="magnitude", budget=Ratio(0.5))
    assert [p.shape for p in energy.parameters()] == [p.shape for p in magnitude.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(energy.parameters(), magnitude.parameters(), strict=True))


def test_contributed_budget_limits_widths() -> None:
    budget = example("A new budget")["MaxWidth"]
    report = prune_once(small_network(), torch.zeros(1, 3), budget=budget(5))
    assert set(report.widths.values()) == {(8, 5), (6, 5)}
    with pytest.raises(ValueError, match="MaxWidth width=0 must be a whole number of at least 1"):
        budget(0)


def test_contributed_callback_sees_events(tmp_path: Path) -> None:
    history = example("A new callback")["SizeHistory"]()
    pruning = IterativePruning(Rounds(1, 1, 2), Ratio(0.5))
    trainer = Trainer(
        max_epochs=3, limit_train_batches=1, limit_val_batches=0, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, callbacks=[pruning, history],
    )  # fmt: skip
    module = ImageClassifier("small_resnet", model_args={"width": 8})
    trainer.fit(module, DigitsData())
    assert len(history.sizes) == 2
    assert history.sizes[1] == sum(parameter.numel() for parameter in module.parameters()) < history.sizes[0]


def test_contributed_rule_removes_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    scale_rows = example("A new operator rule")["scale_rows"]
    rule_of.cache_clear()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
            self.scale = nn.Parameter(torch.rand(8))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(scale_rows(self.first(x).T, self.scale).T)

    net, x = Net(), torch.randn(4, 3)
    report = prune_once(net, x, budget=Ratio(0.5), dry_run=True)
    assert list(report.widths.values()) == [(8, 4)]
    kept = report.plan.keep["first.weight"][0]
    with torch.no_grad():
        net.last.weight[:, [unit for unit in range(8) if unit not in kept.tolist()]] = 0
        masked = net(x)
        prune_once(net, x, budget=Ratio(0.5))
        assert net.scale.shape == (4,)
        assert torch.allclose(net(x), masked, atol=1e-6)
    rule_of.cache_clear()


def test_files_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    new = {"energy", "max_width"}
    paths = set(re.findall(r"`((?:lightning_prune|tests|docs|recipes|benchmarks)/[\w./-]*)`", text))
    assert len(paths) > 15
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert {Path(path).stem.removeprefix("test_") for path in missing} == new
    map_of_package = text.split("```text\n")[1].split("```")[0]
    folders = {path.parent.name for path in (ROOT / "lightning_prune").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/ ", map_of_package, re.MULTILINE)) == folders
