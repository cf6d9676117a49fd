"""The README: its length, its commands, its links, and its example."""

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lightning_prune import IterativePruning
from lightning_prune.tasks import DigitsData, ImageClassifier

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TASKS = (
    "prune while training", "start from your checkpoint", "prune once without training", "resume and load",
    "several GPUs", "YAML", "choose a method", "what is logged", "how it works and what is guaranteed", "limits",
)  # fmt: skip


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_it_is_one_page() -> None:
    assert len(README.splitlines()) <= 150


def test_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, but for one batch per epoch and the CPU."""
    (example,) = blocks("python")
    assert len(example.splitlines()) <= 14
    short: dict[str, Any] = {"limit_train_batches": 1, "limit_val_batches": 1, "accelerator": "cpu", "logger": False}

    class ShortTrainer(Trainer):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments, **short, enable_progress_bar=False, enable_checkpointing=False)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning.pytorch.Trainer", ShortTrainer)
    module = ImageClassifier("small_resnet", num_classes=10, model_args={"width": 8})
    namespace: dict[str, Any] = {"your_lightning_module": module, "your_data": DigitsData()}
    example = example.replace("max_drop=0.02", "max_drop=1")  # one batch teaches nothing
    exec(compile(example, "README.md", "exec"), namespace)
    (pruning,) = [callback for callback in namespace["trainer"].callbacks if isinstance(callback, IterativePruning)]
    assert pruning.pruner.event == 8
    assert 0.4 < pruning.sparsity < 1


def test_both_commands_are_there() -> None:
    first, second = blocks("sh")[:2]
    assert first == 'pip install -e ".[recipes]" && lightning-prune fit --config recipes/quickstart.yaml\n'
    assert second == 'pip install -e ".[test]" && pytest\n'


def test_the_second_command_is_the_one_that_ci_runs() -> None:
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    greps = re.findall(r"sed -n 's/\^\\\((.+?)\\\)\$/\\1/p' README\.md", text)
    assert len(greps) == 1
    found = re.findall(f"^{greps[0]}$", README, re.MULTILINE)  # it has no more than escaped dots and brackets
    assert found == ['pip install -e ".[test]" && pytest']


def test_every_task_has_a_link() -> None:
    rows = dict(re.findall(r"^\| ([^|]+?) \| (.+?) \|$", README, re.MULTILINE))
    assert [task for task in TASKS if "](docs/pages/" not in rows.get(task, "")] == []


def test_files_that_are_named_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)|`?\b((?:recipes|examples|benchmarks|docs)/[\w./]*\w)", README)
    paths = {first or second for first, second in links}
    assert len(paths) > 15
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_there_is_a_picture() -> None:
    (picture,) = re.findall(r"^!\[.+\]\((.+)\)$", README, re.MULTILINE)
    assert (ROOT / picture).stat().st_size > 10_000
