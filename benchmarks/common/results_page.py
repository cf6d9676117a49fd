"""RESULTS.md out of the files that benchmarks have written; nothing is measured here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath
from typing import Any

from common import cifar_table
from common.method_page import ORDER, summary, table
from common.provenance import in_words
from common.tables import SIZES, markdown, stem
from common.verdicts import verdicts

NOT_RUN = "not yet run"
Content = dict[str, Any]

INTRODUCTION = """Written by `python benchmarks/run_all.py` from the files in [results](results). No figure is typed by
hand; what has not been run is marked and not estimated. [README.md](README.md) describes what is measured."""
ELSEWHERE = {  # what run_all.py leaves to the scripts themselves
    "overhead.md": "the cost of pruning during training, compared with `ModelPruning`",
    "torchvision_models.md": "all networks of torchvision",
    "libraries.md": "networks of timm, transformers, segmentation_models_pytorch and monai",
    "coupling.json": "time of a pruning event, compared with Torch-Pruning",
    "trace.json": "time of the traced pass, compared with real forward passes",
    "quickstart.json": "the quickstart recipe, three seeds",
    "startup.json": "time of imports and of the command line, compared with `import torch`",
}


@dataclass(frozen=True)
class Part:
    """A script and the files it writes: NAME_small with ``--small`` and so on, NAME in full.

    ``page`` makes what is shown from the JSON file, where the script writes no page or may be stopped before it does.
    """

    name: str
    title: str
    for_gpu: bool  # its full run; these scripts have --device
    page: Callable[[Content], str] | None = None
    remarks: Callable[[Content], list[str]] = lambda _: []


def criteria_page(content: Content) -> str:
    """A table for each granularity."""
    rows = content["rows"]
    unpruned = dict.fromkeys(row["method"] for row in rows if not row["granularity"])
    dense = {name: summary([r for r in rows if r["method"] == name]) for name in unpruned}
    found = ["; ".join(f"{name} {figure}" for name, figure in dense.items())]
    for granularity in ORDER[1:]:
        here = [row for row in rows if row["granularity"] == granularity]
        if here:
            found.append(table(list(dict.fromkeys(row["method"] for row in here)), here).rstrip())
    seeds = len({row["seed"] for row in rows})
    return "\n\n".join([*found, f"{seeds} seed(s). {in_words(content)}"])


PARTS = (
    Part("cifar10", "1, 2. CIFAR-10: channels and weights side by side", True, cifar_table.page, verdicts),
    Part("sagemaker", "3. The SageMaker experiment: 200 units a round", True),
    Part("mnist", "4. MNIST: compressed size against sparsity", False),
    Part("speed", "5. Real speed", True),
    Part("scale", "6. Scale", True),
    Part("criteria", "Every criterion, on the digits", False, criteria_page),
)


def results(folder: Path) -> str:
    """The whole page."""
    parts = ["# Results", INTRODUCTION, overview(folder), times(folder)]
    for part in PARTS:
        parts.append(f"## {part.title}")
        for size in sizes(part.name, folder):
            parts += [f"### {size.capitalize()} run", *shown(part, folder, size)]
    found = [f"- [{name}](results/{name}): {what}" for name, what in ELSEWHERE.items() if (folder / name).is_file()]
    if found:
        parts += ["## Further tables", "\n".join(found)]
    return "\n\n".join(filter(None, parts)) + "\n"


def sizes(name: str, folder: Path) -> list[str]:
    """Of which runs there is something to say."""
    return [size for size in SIZES if size in ("small", "full") or content_of(name, folder, size) is not None]


def content_of(name: str, folder: Path, size: str) -> Content | None:
    """What a run has measured; None if there was none."""
    file = folder / f"{stem(name, size)}.json"
    if not file.is_file():
        return None
    content: Content = json.loads(file.read_text(encoding="utf-8"))
    return content


def overview(folder: Path) -> str:
    """A line for each part: when, where and from which commit it was measured."""
    lines = [
        [f"`{part.name}.py`", size, source(content_of(part.name, folder, size)) + failure(folder, part.name, size)]
        for part in PARTS
        for size in sizes(part.name, folder)
    ]
    return markdown(["script", "run", "measured"], lines)


def source(content: Content | None) -> str:
    if content is None:
        return NOT_RUN
    seconds = seconds_of(content)
    unit = "minutes of training" if content.get("workers", 1) > 1 else "minutes"  # which went on at the same time
    return f"{content['date']}, commit {content['commit']}; {content['hardware']}; {seconds / 60:.1f} {unit}"


def seconds_of(content: Content) -> float:
    """Of a whole run, or of its cells, which may be of several runs."""
    seconds: float = content.get("seconds", sum(row.get("seconds", 0) for row in content["rows"]))
    return seconds


def shown(part: Part, folder: Path, size: str) -> list[str]:
    """The paragraphs of one run."""
    content = content_of(part.name, folder, size)
    if content is None:
        where = " on a GPU" if part.for_gpu and size == "full" else ""
        return [f"{NOT_RUN.capitalize()}{where}."]
    if part.page is not None:
        text = part.page(content)
    else:
        file = folder / f"{stem(part.name, size)}.md"
        if not file.is_file():
            raise FileNotFoundError(f"{file.name} does not exist, but its JSON file does: run {part.name}.py again")
        text = file.read_text(encoding="utf-8")
    text = re.sub(r"^(?=##)", "##", re.sub(r"\A# .*\n", "", text), flags=re.MULTILINE).strip()
    text = re.sub(r"\]\((?!https?:)([^)]+)\)", lambda link: f"]({normpath(f'results/{link[1]}')})", text)
    remarks = "\n".join(f"- {remark}" for remark in part.remarks(content))
    on_cpu = part.for_gpu and size == "full" and device_of(content) != "cuda"
    return [text, remarks, f"On a GPU: {NOT_RUN}." if on_cpu else ""]


def device_of(content: Content) -> str:
    device: str = content.get("device") or content.get("setting", {}).get("device", "")
    return device


# ---- how long run_all.py took


def runs_of(folder: Path, size: str) -> dict[str, dict[str, Any]]:
    """The last run of each script by run_all.py."""
    file = folder / f"{stem('run_all', size)}.json"
    runs: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return runs


def note(folder: Path, size: str, name: str, run: dict[str, Any]) -> None:
    """Keep ``run``, its date, seconds and exit status, as the last of this script."""
    runs = runs_of(folder, size) | {name: run}
    (folder / f"{stem('run_all', size)}.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


def failure(folder: Path, name: str, size: str) -> str:
    status = runs_of(folder, size).get(name, {}).get("exit", 0)
    return f"; its last run FAILED with exit status {status}" if status else ""


def times(folder: Path) -> str:
    """Wall time of the scripts as run_all.py ran them, or of all cells where they stem from several runs."""
    found = []
    for size in SIZES:
        runs = {name: run["seconds"] for name, run in runs_of(folder, size).items()}
        if runs:
            for name, part in ((name, content_of(name, folder, size)) for name in runs):
                if part is not None and part.get("workers", 0) == 1:  # the run may have gone on from another
                    runs[name] = max(runs[name], seconds_of(part))
            each = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in runs.items())
            missing = [part.name for part in PARTS if part.name not in runs]
            total = f"together {sum(runs.values()) / 60:.1f} minutes"
            end = f"no total, as it has not yet run {', '.join(missing)}" if missing else total
            command = "run_all.py" if size == "full" else f"run_all.py --{size}"
            found.append(f"`{command}`, wall time of each: {each}; {end}.")
    return "\n\n".join(found)
