"""What a wrong configuration is reported as: one line with the innermost cause and the nearest known name."""

import contextlib
import copy
import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_prune.cli import main
from lightning_prune.methods import method_named

CONTENT = yaml.safe_load(method_named("quickstart").path.read_text(encoding="utf-8"))
PRUNING = ("trainer", "callbacks", 0)
ARGUMENTS = (*PRUNING, "init_args")
DELETE = object()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def errors_of(*args: str) -> tuple[int, list[str]]:
    """Exit code and lines of the standard error."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(list(args))
        except SystemExit as stop:
            return int(stop.code or 0), error.getvalue().splitlines()
    return 0, error.getvalue().splitlines()


def changed(*path: Any, to: Any = DELETE, renamed: str = "") -> None:
    """Write the quickstart with another value, or another name of a key, to ``c.yaml``."""
    content = copy.deepcopy(CONTENT)
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    value = place.pop(path[-1]) if renamed else to
    place[renamed or path[-1]] = value
    Path("c.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("path", "name", "message"),
    [
        (("trainer",), "trainr", "there is no key 'trainr'; did you mean 'trainer'?"),
        (("seed_everything",), "seed", "there is no key 'seed'"),
        (
            ("trainer", "max_epochs"),
            "max_epoch",
            "there is no key 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?",
        ),
        (
            (*ARGUMENTS, "schedule"),
            "shedule",
            "trainer.callbacks: IterativePruning has no argument 'shedule'; did you mean 'schedule'?",
        ),
        (
            ("trainer", "callbacks", 1, "init_args", "max_drop"),
            "max_drp",
            "trainer.callbacks: AccuracyGuard has no argument 'max_drp'; did you mean 'max_drop'?",
        ),
        (
            (*ARGUMENTS, "schedule", "init_args", "start"),
            "begin",
            "trainer.callbacks.schedule: Rounds has no argument 'begin'; it has start, every, count, unit",
        ),
        (
            (*ARGUMENTS, "budget", "init_args", "keep"),
            "kep",
            "trainer.callbacks.budget: MACs has no argument 'kep'; did you mean 'keep'?",
        ),
        ((*PRUNING, "init_args"), "init_arg", "trainer.callbacks: Callback has no argument 'init_arg'; did you mean "),
        (
            (*PRUNING, "class_path"),
            "class",
            "trainer.callbacks: expected a Callback with the keys class_path and init_",
        ),
        (
            ("model", "init_args", "num_classes"),
            "num_class",
            "model: ImageClassifier has no argument 'num_class'; did you mean 'num_classes'?",
        ),
        (
            ("model", "init_args", "optimizer", "init_args", "lr"),
            "lrr",
            "model.optimizer: AdamW has no argument 'lrr'; did you mean 'lr'?",
        ),
        (
            ("data", "init_args", "batch_size"),
            "batchsize",
            "data: DigitsData has no argument 'batchsize'; did you mean 'batch_size'?",
        ),
        (
            ("trainer", "logger", "init_args", "save_dir"),
            "savedir",
            "trainer.logger: TensorBoardLogger has no argument 'savedir'; did you mean 'save_dir'?",
        ),
    ],
)
def test_a_misspelled_key(path: tuple[Any, ...], name: str, message: str) -> None:
    changed(*path, renamed=name)
    code, lines = errors_of("fit", "--config", "c.yaml")
    assert (code, len(lines)) == (2, 1), lines
    assert lines[0].startswith(f"lightning-prune: {message}")


@pytest.mark.parametrize(
    ("path", "name", "message"),
    [
        (PRUNING, "IterativPruning", "trainer.callbacks: there is no class 'IterativPruning'; did you mean 'Iterative"),
        (
            PRUNING,
            "lightning_prune.IterativPruning",
            "trainer.callbacks: module 'lightning_prune' has no class 'IterativPruning'; did you mean 'Iterative",
        ),
        (
            PRUNING,
            "lightnig_prune.IterativePruning",
            "trainer.callbacks: there is no module 'lightnig_prune' (of 'lightnig_prune.IterativePruning'); did you "
            "mean 'lightning_prune'?",
        ),
        (
            PRUNING,
            "lightning_prune.callback.IterativePruning",
            "trainer.callbacks: module 'lightning_prune' has no module 'callback'; did you mean 'callbacks'?",
        ),
        (
            (*ARGUMENTS, "schedule"),
            "Round",
            "trainer.callbacks.schedule: there is no class 'Round'; did you mean 'Rounds'?",
        ),
        (
            (*ARGUMENTS, "schedule"),
            "lightning_prune.schedules.Round",
            "trainer.callbacks.schedule: module 'lightning_prune.schedules' has no class 'Round'; did you mean 'Ro",
        ),
        ((*ARGUMENTS, "budget"), "MAC", "trainer.callbacks.budget: there is no class 'MAC'; did you mean 'MACs'?"),
        (
            (*ARGUMENTS, "criterion"),
            "Tayler",
            "trainer.callbacks.criterion: there is no class 'Tayler'; did you mean 'Taylor'?",
        ),
        (
            (*ARGUMENTS, "granularity"),
            "Chanels",
            "trainer.callbacks.granularity: there is no class 'Chanels'; did you mean 'Channels'?",
        ),
        (("model",), "ImageClasifier", "model: there is no class 'ImageClasifier'; did you mean 'ImageClassifier'?"),
        (
            ("model",),
            "LitNet",
            "model: there is no class 'LitNet'; give the full path of a class of your own: my_package.LitNet",
        ),
        (
            ("model",),
            "my_pkg.LitNet",
            "model: there is no module 'my_pkg' (of 'my_pkg.LitNet'); it is searched in the working directory and "
            "in the environment",
        ),
        (
            ("model", "init_args", "lr_scheduler"),
            "torch.optim.lr_scheduler.CosineAnealingLR",
            "model.lr_scheduler: module 'torch.optim.lr_scheduler' has no class 'CosineAnealingLR'; did you mean "
            "'CosineAnnealingLR'?",
        ),
        (("data",), "DigitData", "data: there is no class 'DigitData'; did you mean 'DigitsData'?"),
        (
            ("trainer", "logger"),
            "TensorBordLogger",
            "trainer.logger: there is no class 'TensorBordLogger'; did you mean 'TensorBoardLogger'?",
        ),
    ],
)
def test_an_unknown_class(path: tuple[Any, ...], name: str, message: str) -> None:
    changed(*path, "class_path", to=name)
    code, lines = errors_of("fit", "--config", "c.yaml")
    assert (code, len(lines)) == (2, 1), lines
    assert lines[0].startswith(f"lightning-prune: {message}")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("trainer", "max_epochs"), "many", "trainer.max_epochs: expected int or null, got many"),
        (("model", "init_args", "num_classes"), "ten", "model.num_classes: expected int, got ten"),
        (
            (*ARGUMENTS, "schedule", "init_args", "start"),
            "soon",
            "trainer.callbacks.schedule.start: expected float, got soon",
        ),
        (
            (*ARGUMENTS, "schedule", "init_args"),
            {"start": 1},
            "trainer.callbacks.schedule: Rounds needs the arguments every, count",
        ),
    ],
)
def test_a_wrong_value(path: tuple[Any, ...], value: Any, message: str) -> None:
    changed(*path, to=value)
    assert errors_of("fit", "--config", "c.yaml") == (2, [f"lightning-prune: {message}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer:\n  max_epochs: [1\nmodel: x\n", "c.yaml is not valid YAML, line 3, column 6: "),
        ("", "c.yaml has no keys such as trainer, model and data"),
        ("- 1\n", "c.yaml has no keys such as trainer, model and data"),
    ],
)
def test_a_file_that_is_no_configuration(text: str, message: str) -> None:
    Path("c.yaml").write_text(text)
    code, lines = errors_of("fit", "--config", "c.yaml")
    assert (code, len(lines)) == (2, 1), lines
    assert lines[0].startswith(f"lightning-prune: {message}")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", "nowhere.yaml"], "there is no file '{here}/nowhere.yaml'"),
        ([], "no model is given; use --config FILE, --config recipe:NAME or --model CLASS"),
        (["quickstart.yaml"], "'quickstart.yaml' is not an option; a configuration is given with --config quickstart."),
        (["--config=recipe:lamp", "--trainr.max_epochs=3"], "there is no option '--trainr'; did you mean '--trainer'?"),
        (
            ["--config=recipe:lamp", "--trainer.maxepochs=3"],
            "there is no option '--trainer.maxepochs'; did you mean '--trainer.max_epochs'?",
        ),
        (["--config=recipe:lamp", "--trainer.max_epochs=many"], "trainer.max_epochs: expected int or null, got many"),
        (["--model=ImageClasifier"], "model: there is no class 'ImageClasifier'; did you mean 'ImageClassifier'?"),
        (
            ["--config=recipe:lamp", "--trainer.callbacks+=SlimingPenalty"],
            "trainer.callbacks: there is no class 'SlimingPenalty'; did you mean 'SlimmingPenalty'?",
        ),
        (
            ["--trainer.callbacks.help=IterativPruning"],
            "trainer.callbacks: there is no class 'IterativPruning'; did you mean 'IterativePruning'?",
        ),
        (["--config"], "argument -c/--config: expected one argument"),
    ],
)
def test_wrong_arguments(args: list[str], message: str, tmp_path: Path) -> None:
    code, lines = errors_of("fit", *args)
    assert (code, len(lines)) == (2, 1), lines
    assert lines[0].startswith(f"lightning-prune: {message.format(here=tmp_path)}")


def test_errors_of_a_module_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_task_with_errors.py").write_text("import a_package_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, lines = errors_of("fit", "--model=my_task_with_errors.Net")
    assert (code, len(lines)) == (2, 1), lines
    assert "there is no module 'a_package_that_is_missing' (of 'my_task_with_errors.Net')" in lines[0]
