"""What the README prints is what there is."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_prune.cli import PruneCLI

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def write_images(root: Path, splits: dict[str, int], classes: int = 10) -> None:
    random = np.random.default_rng(0)
    for split, count in splits.items():
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def test_yaml_runs_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (recipe,) = blocks("yaml")
    Path("recipe.yaml").write_text(recipe, encoding="utf-8")
    write_images(tmp_path / "photos", {"train": 1, "val": 1})
    short = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--data.init_args.batch_size=2"]
    with redirect_stdout(io.StringIO()):
        cli = PruneCLI(args=["fit", "--config", "recipe.yaml", *short])
    assert cli.model.network.conv1.in_channels == 3
    assert cli.trainer.global_step == 1
    assert {"train_loss", "val_acc"} <= set(cli.trainer.callback_metrics)
    names = re.findall(r"- class_path: (\w+)", recipe)
    assert len(names) == 3
    assert set(names) <= {type(callback).__name__ for callback in cli.trainer.callbacks}  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_block_compiles(number: int) -> None:
    compile(blocks("python")[number], f"README.md, block {number + 1} of Python", "exec")


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_imports_of_a_python_block_are_there(number: int) -> None:
    lines = [line for line in blocks("python")[number].splitlines() if re.match(r"(from|import) ", line)]
    exec("\n".join(lines), {})


def test_there_are_blocks() -> None:
    assert len(blocks("python")) >= 2
    assert len(blocks("sh")) >= 2


def test_every_metric_of_the_docs_is_named() -> None:
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(names) > 10
    assert [name for name in names if f"`{name}`" not in README] == []


def test_the_second_command_is_the_one_that_ci_runs() -> None:
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    greps = re.findall(r"sed -n 's/\^\\\((.+?)\\\)\$/\\1/p' README\.md", text)
    assert len(greps) == 1
    found = re.findall(f"^{greps[0]}$", README, re.MULTILINE)  # it has no more than escaped dots and brackets
    assert found == ['pip install -e ".[test]" && pytest']


def test_recipes_and_documents_that_are_named_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)|`((?:recipes|examples|benchmarks|docs)/[\w./]+)`", README)
    paths = {first or second for first, second in links}
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    assert {f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")} <= paths
