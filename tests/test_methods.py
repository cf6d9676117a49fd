"""The list of methods, their recipes, and the page that describes them."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from common.method_page import PLACE, fill
from common.variants import VARIANTS
from criteria import BEFORE

from lightning_prune.cli import main
from lightning_prune.criteria import CRITERIA
from lightning_prune.methods import METHODS, Method, markdown_table, read_header, recipe_path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "pages" / "reference" / "methods.md").read_text(encoding="utf-8")
MEASURED = ROOT / "benchmarks" / "results" / "criteria.json"
CONTROLS = [
    "dense", "dense, trained on", "dense, nine blocks", "dense, transformer", "dense, transformer, trained on",
    "small, from scratch",
]  # fmt: skip
NAMES = [*(cls.__name__ for cls in CRITERIA), *VARIANTS]
KINDS = {"Channels": "channels", "Weights": "weights", "NM": "weights", "Blocks": "blocks"}

each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.short)
RECIPES = [m for m in METHODS if m.file.endswith(".yaml")]
each_recipe = pytest.mark.parametrize("method", RECIPES, ids=lambda method: method.short)
each_pruner = pytest.mark.parametrize(
    "method", [m for m in RECIPES if m.short != "supermask"], ids=lambda method: method.short
)


def section(title: str) -> str:
    """What stands below a method's title."""
    (text,) = re.findall(rf"^### {re.escape(title)}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return text


def pruner_in(method: Method) -> dict[str, Any]:
    content = yaml.safe_load((ROOT / method.file).read_text(encoding="utf-8"))
    pruner = next(c for c in content["trainer"]["callbacks"] if c["class_path"] == "IterativePruning")
    return pruner["init_args"]


# --- the list


def test_every_recipe_is_listed_once() -> None:
    recipes = {f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    files = [method.file for method in METHODS]
    assert len(set(files)) == len(files)
    assert set(files) - recipes == {"examples/wanda_one_shot.py"}
    assert recipes <= set(files)
    assert len({method.name for method in METHODS}) == len(METHODS)


@each_method
def test_what_it_runs_is_there(method: Method) -> None:
    assert method.path == ROOT / method.file
    assert method.path.is_file()
    if method.is_script:
        assert method.command == f"python {method.file}"
    else:
        *start, name = method.command.split()
        assert start == ["lightning-prune", "fit", "--config"]
        assert recipe_path(name) == str(method.path)


@each_pruner
def test_the_granularity_is_that_of_the_recipe(method: Method) -> None:
    assert KINDS[pruner_in(method)["granularity"]["class_path"]] == method.granularity


def listed(monkeypatch: pytest.MonkeyPatch, columns: int) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    with contextlib.redirect_stdout(io.StringIO()) as output:
        main(["methods"])
    return output.getvalue()


def test_the_command_lists_each_method_below_its_granularity(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.rstrip() for line in listed(monkeypatch, 120).splitlines()]
    assert max(map(len, lines)) <= 120
    rows = [re.split(r" {2,}", line.strip()) for line in lines]
    titles = ("Weights (masked)", "Channels (removed)", "Residual blocks (removed)")
    starts = [*map(lines.index, titles), len(lines)]
    for method in METHODS:
        assert rows.count([method.name, method.description, method.short]) == 1, method
        at = rows.index([method.name, method.description, method.short])
        kind = ["weights", "channels", "blocks"].index(method.granularity)
        assert starts[kind] < at < starts[kind + 1]
    text = "\n".join(lines)
    assert "lightning-prune fit --config recipe:NAME" in text
    assert "lightning-prune methods wanda_one_shot > wanda_one_shot.py" in text


@pytest.mark.parametrize("columns", [60, 80])
def test_narrow_terminals_fold_the_description_and_keep_the_names(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    text = listed(monkeypatch, columns)
    for method in METHODS:
        assert re.search(rf"^ {re.escape(method.name)} .* {method.short} *$", text, re.MULTILINE), method


def output_of(*args: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        main(list(args))
    return output.getvalue()


@pytest.mark.parametrize("method", [METHODS[0], METHODS[-1], *(m for m in METHODS if m.is_script)])
def test_the_command_prints_a_file_to_copy(method: Method) -> None:
    assert output_of("methods", method.short) == (ROOT / method.file).read_text(encoding="utf-8")


def test_an_unknown_method_is_one_line() -> None:
    with contextlib.redirect_stderr(io.StringIO()) as output, pytest.raises(SystemExit) as stop:
        main(["methods", "taylor_200_filter"])
    assert stop.value.code == 1
    assert output.getvalue() == (
        "lightning-prune: there is no recipe 'taylor_200_filter'; did you mean 'taylor_200_filters'?\n"
    )


# --- the headers


def test_a_header_by_hand() -> None:
    header = "# 2:4 and N:M: masks weights\n# Granularity: weights\n# Paper: A, 'B', 2021\n#\n# C: d\n"
    text = f"{header}model: 1\n# Paper: no\n"
    wanted = Method("2:4 and N:M", "masks weights", "recipes/a.yaml", "weights", ("A, 'B', 2021",))
    assert read_header(text, "recipes/a.yaml") == wanted


@pytest.mark.parametrize(
    "text",
    ["", "model: 1\n", "# Name\n# Granularity: weights\n", "# Name: text\n", "# Name: text\n# Granularity: layers\n"],
)
def test_a_header_that_lacks_something_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^recipes/a.yaml: a recipe begins with '# Name: description'"):
        read_header(text, "recipes/a.yaml")


def test_the_table_of_the_documentation() -> None:
    lines = markdown_table().splitlines()
    assert len(lines) == 2 + len(METHODS)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert cells[0] == ["method", "description", "file"]
    assert [row[0] for row in cells[2:]] == [method.name for method in METHODS]
    assert [row[1].replace("\\|", "|") for row in cells[2:]] == [method.description for method in METHODS]
    assert [row[2].strip("`") for row in cells[2:]] == [method.file for method in METHODS]


# --- the installed package


def test_an_installed_package_has_its_recipes(tmp_path: Path) -> None:
    """As a wheel: the package, and what the build adds to it."""
    shutil.copytree(
        ROOT / "lightning_prune", tmp_path / "lightning_prune", ignore=shutil.ignore_patterns("__pycache__")
    )
    tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    for source, target in build["wheel"]["force-include"].items():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / target)
    code = (
        "from lightning_prune import methods\n"
        "print(methods.__file__)\n"
        "for method in methods.METHODS: print(method.short, method.path)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment)
    first, *files = done.stdout.splitlines()
    installed = tmp_path / "lightning_prune"
    assert first == str(installed / "methods.py"), done.stderr
    assert files == [f"{m.short} {installed / 'recipes' / Path(m.file).name}" for m in METHODS]


# --- the page


def test_the_page_has_the_sections_of_the_list() -> None:
    weights, others = PAGE.split("\n## Channels\n")
    channels, blocks = others.split("\n## Blocks\n")
    for text, granularity in ((weights, "weights"), (channels, "channels"), (blocks, "blocks")):
        titles = re.findall(r"^### (.+)$", text, re.MULTILINE)
        assert sorted(titles) == sorted(method.name for method in METHODS if method.granularity == granularity)


@each_method
def test_a_section_is_complete(method: Method) -> None:
    text = section(method.name)
    idea = text.split("\n- ")[0].replace("\n", " ").strip()
    assert len(re.findall(r"\.(?: |$)", idea)) >= 2, "the idea, in sentences"
    for word in ("- Formula: ", "- Paper: ", "- When: "):
        assert text.count(word) == 1, word
    assert f"`{method.command}`" in text or f"`lightning-prune fit --config {method.file}`" in text


@each_recipe
def test_a_section_cites_what_its_recipe_cites(method: Method) -> None:
    text = " ".join(section(method.name).split())
    papers = [found.groups() for paper in method.papers if (found := re.fullmatch(r"(.+) '(.+)', .*?(\d{4})", paper))]
    assert len(papers) == len(method.papers) > 0
    for authors, title, year in papers:
        assert re.search(rf"{re.escape(authors)} \*{re.escape(title)}\*, [^*]*?{year}", text), title


@each_pruner
def test_a_section_names_the_criterion_and_shows_its_figures_or_where_they_are(method: Method) -> None:
    text, criterion = section(method.name), pruner_in(method)["criterion"]["class_path"]
    assert f"`{criterion}" in text
    own = {name for place in PLACE.finditer(text) for name in place[2].split("; ")}
    assert own <= {criterion, *VARIANTS, *CONTROLS}
    assert bool(own) != ("Figures: as for" in text)


def test_every_criterion_has_its_place_once() -> None:
    places = [name for place in PLACE.finditer(PAGE) for name in place[2].split("; ")]
    assert sorted(places) == sorted([*CONTROLS, *NAMES])
    assert set(BEFORE) <= set(NAMES)


def test_from_a_sentence_to_a_recipe() -> None:
    table = PAGE.split("\n## From a sentence to a recipe\n")[1]
    assert set(re.findall(r"(?:recipes|examples)/\w+\.\w+", table)) == {method.file for method in METHODS}
    for sentence in ("80 % of the weights by magnitude, gradually", "network slimming at 50 %", "movement pruning"):
        assert sentence in table
    assert "(#from-a-sentence-to-a-recipe)" in PAGE


# --- the figures


def row(method: str, granularity: str, share: float, accuracy: float) -> dict[str, Any]:
    return {"method": method, "granularity": granularity, "share": share, "accuracy": accuracy}


ROWS = [
    row("dense", "", 0.0, 0.99),
    row("LAMP", "channels", 0.5, 0.75),
    row("LAMP", "weights", 0.9, 0.9),
    row("LAMP", "weights", 0.6, 0.96),
    row("LAMP", "weights", 0.6, 0.98),
    row("Random", "weights", 0.6, 0.5),
    row("Random", "channels", 0.7, 0.25),
]


def test_figures_by_hand() -> None:
    page = (
        "a\n<!-- criteria:LAMP -->\nold\n<!-- /criteria -->\nb\n<!-- criteria:dense; Random -->\n<!-- /criteria -->\n"
    )
    assert fill(page, ROWS) == (
        "a\n<!-- criteria:LAMP -->\n"
        "| validation accuracy, % | weights, 60 % removed | weights, 90 % removed | channels, 50 % removed |\n"
        "|---|---|---|---|\n"
        "| LAMP | 97.0 ± 1.4 | 90.0 | 75.0 |\n| Random | 50.0 |  |  |\n<!-- /criteria -->\nb\n"
        "<!-- criteria:dense; Random -->\n"
        "| validation accuracy, % | dense | weights, 60 % removed | channels, 70 % removed |\n|---|---|---|---|\n"
        "| dense | 99.0 |  |  |\n| Random |  | 50.0 | 25.0 |\n<!-- /criteria -->\n"
    )


def test_what_was_not_measured_is_named() -> None:
    with pytest.raises(ValueError, match=r"a place for 'SNIP', of which nothing was measured: \['LAMP', 'Random'"):
        fill("<!-- criteria:SNIP -->\n<!-- /criteria -->", ROWS)


def test_every_place_of_the_page_can_be_filled_again_and_again() -> None:
    rows = [row(name, "weights", 0.6, 0.5) for name in [*CONTROLS, *NAMES]]
    once = fill(PAGE, rows)
    assert once.count("\n| Random | 50.0 |") == len(PLACE.findall(PAGE))  # beside all, and among the controls
    assert fill(once, rows) == once
    again = [row(name, "weights", 0.6, 0.25) for name in [*CONTROLS, *NAMES]]
    assert fill(once, again) == fill(PAGE, again) != once


@pytest.mark.skipif(not MEASURED.is_file(), reason="benchmarks/criteria.py has not written its figures")
def test_the_figures_of_the_page_are_those_measured() -> None:
    assert fill(PAGE, json.loads(MEASURED.read_text())["rows"]) == PAGE
