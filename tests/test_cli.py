"""The command line and the recipes."""

import contextlib
import io
import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchvision
import yaml
from helpers.caltech import write_caltech
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchvision.models import resnet18

import lightning_prune
from lightning_prune import AccuracyGuard, Channels, IterativePruning, SlimmingPenalty, Weights, load_pruned
from lightning_prune.budgets import MACs
from lightning_prune.callbacks import PrunedCheckpoints, PruningSummary
from lightning_prune.cli import SUBCOMMANDS, PruneCLI, main
from lightning_prune.criteria import LAMP, Magnitude, Taylor
from lightning_prune.tasks import DigitsData, ImageClassifier

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"

each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


class Built(PruneCLI):
    """Builds everything and trains nothing."""

    def fit(self, **_: Any) -> None: ...

    def after_fit(self) -> None: ...


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _as_if_downloaded(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of Caltech-101 finds images of its 101 classes, and random weights in place of the pretrained ones."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if getattr(params.get("recipe"), "stem", None) == "caltech101":
        write_caltech(tmp_path / "data", [f"object{number:03}" for number in range(101)], count=4)
        pretrained = resnet18().state_dict()
        monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *_, **__: pretrained)


def build(*args: str) -> Built:
    return Built(args=["fit", *args])


def pruning_of(cli: PruneCLI) -> IterativePruning:
    (pruning,) = (c for c in cli.trainer.callbacks if isinstance(c, IterativePruning))
    return pruning


def variant(path: Path, **init_args: Any) -> str:
    """The quickstart with other arguments of its pruner."""
    content = yaml.safe_load(QUICKSTART.read_text())
    content["trainer"]["callbacks"][0]["init_args"].update(init_args)
    path.write_text(yaml.safe_dump(content))
    return str(path)


# --- recipes --------------------------------------------------------------------------------------------------------


def test_there_are_recipes() -> None:
    assert QUICKSTART in RECIPES
    assert {recipe.stem for recipe in RECIPES} == set(KINDS)


def held(owner: Any, name: str) -> Any:
    """The argument ``name`` that ``owner`` was built with."""
    if isinstance(owner, IterativePruning) and name in ("criterion", "budget", "scope"):
        return getattr(owner.pruner, name)
    return getattr(owner, name)


def assert_is(built: Any, wanted: Any, where: str) -> None:
    """``built`` is what the YAML ``wanted`` says, type by type and value by value."""
    if isinstance(wanted, list) and wanted and isinstance(wanted[0], dict):
        for number, (one, named) in enumerate(zip(built, wanted, strict=True)):
            assert_is(one, named, f"{where}[{number}]")
        return
    if not isinstance(wanted, dict) or isinstance(built, (dict, tuple)):
        plain = list(wanted.items()) if isinstance(wanted, dict) and isinstance(built, tuple) else wanted
        assert (list(built) if isinstance(built, tuple) else built) == plain, where
        return
    if "class_path" not in wanted:  # a dataclass
        for name, value in wanted.items():
            assert_is(getattr(built, name), value, f"{where}.{name}")
        return
    assert type(built).__name__ == wanted["class_path"].rpartition(".")[2], where
    for name, value in wanted.get("init_args", {}).items():
        assert_is(held(built, name), value, f"{where}.{name}")


@each_recipe
def test_recipe_builds_what_it_names(recipe: Path) -> None:
    wanted, cli = yaml.safe_load(recipe.read_text()), build("--config", str(recipe))
    callbacks = wanted["trainer"]["callbacks"]
    own = [c for c in cli.trainer.callbacks if type(c).__name__ in {w["class_path"] for w in callbacks}]
    for built, callback in zip(own, callbacks, strict=True):
        assert_is(built, callback, callback["class_path"])
    assert_is(cli.datamodule, wanted["data"], "data")
    assert cli.trainer.max_epochs == wanted["trainer"]["max_epochs"]
    assert_is(cli.trainer.logger, {"class_path": wanted["trainer"]["logger"]["class_path"]}, "logger")
    model = wanted["model"]["init_args"]
    for name in ("model", "num_classes", "in_channels", "model_args"):
        assert cli.model.hparams[name] == model.get(name), name
    made = cli.model.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made
    assert f"torch.optim.{type(optimizer).__name__}" == model["optimizer"]["class_path"]
    assert {n: optimizer.defaults[n] for n in model["optimizer"]["init_args"]} == model["optimizer"]["init_args"]
    if "lr_scheduler" in model:
        scheduler = made["lr_scheduler"]["scheduler"]
        assert f"torch.optim.lr_scheduler.{type(scheduler).__name__}" == model["lr_scheduler"]["class_path"]
        assert scheduler.T_max == model["lr_scheduler"]["init_args"]["T_max"]
        rewinds = any(callback["class_path"] == "Rewind" for callback in callbacks)
        assert rewinds or scheduler.T_max == wanted["trainer"]["max_epochs"]


KINDS = {
    "attention_heads": ("Channels", "WeightTaylor", "Rounds", "Ratio"),
    "two_pruners": (
        ("Channels", "Taylor", "Rounds", "MACs"),
        ("Weights", "Magnitude", "Cubic", "Sparsity"),
    ),
    "block_influence": ("Blocks", "BlockInfluence", "Rounds", "Count"),
    "caltech101": ("Channels", "Taylor", "Rounds", "Count"),
    "blocks": ("Blocks", "Sensitivity", "Rounds", "Count"),
    "block_sparse": ("Weights", "Magnitude", "Cubic", "Sparsity"),
    "erk": ("Weights", "Magnitude", "Cubic", "ERK"),
    "growing_penalty": ("Channels", "Magnitude", "Constant", "Ratio"),
    "isomorphic": ("Channels", "Magnitude", "Rounds", "MACs"),
    "latency": ("Channels", "Taylor", "Rounds", "Latency"),
    "layer_ratios": ("Weights", "Magnitude", "Cubic", "Ratios"),
    "lr_rewinding": ("Weights", "Magnitude", "Exponential", "Sparsity"),
    "magnitude_increase": ("Weights", "MagnitudeIncrease", "Exponential", "Sparsity"),
    "rigl": ("Weights", "Random", "Constant", "ERK"),
    "set": ("Weights", "Random", "Constant", "ERK"),
    "slimming_threshold": ("Channels", "BatchNormScale", "Constant", "Threshold"),
    "soft_movement": ("Weights", "Movement", "Rounds", "Threshold"),
    "two_budgets": ("Channels", "Taylor", "Rounds", "All"),
    "two_of_four": ("NM", "Magnitude", "Constant", "Sparsity"),
    "weight_rewinding": ("Weights", "Magnitude", "Exponential", "Sparsity"),
    "apoz": ("Channels", "APoZ", "Rounds", "Ratio"),
    "distillation": ("Channels", "Taylor", "Rounds", "MACs"),
    "fisher": ("Weights", "Fisher", "Cubic", "Sparsity"),
    "gate_taylor": ("Channels", "GateTaylor", "Rounds", "MACs"),
    "geometric_median": ("Channels", "GeometricMedian", "Rounds", "Ratio"),
    "gradual_magnitude": ("Weights", "Magnitude", "Cubic", "Sparsity"),
    "grasp": ("Weights", "GraSP", "Constant", "Sparsity"),
    "group_lasso": ("Channels", "Magnitude", "Constant", "MACs"),
    "hessian": ("Weights", "Hessian", "Cubic", "Sparsity"),
    "iterative_magnitude": ("Weights", "Magnitude", "Exponential", "Sparsity"),
    "l1_filters": ("Channels", "Magnitude", "Constant", "Ratio"),
    "lamp": ("Weights", "LAMP", "Cubic", "Sparsity"),
    "lottery_ticket": ("Weights", "Magnitude", "Exponential", "Sparsity"),
    "mean_activation": ("Channels", "MeanActivation", "Rounds", "MACs"),
    "movement": ("Weights", "Movement", "Cubic", "Sparsity"),
    "network_slimming": ("Channels", "BatchNormScale", "Constant", "Ratio"),
    "one_cycle": ("Weights", "Magnitude", "OneCycle", "Sparsity"),
    "quickstart": ("Channels", "Taylor", "Rounds", "MACs"),
    "snip": ("Weights", "SNIP", "Constant", "Sparsity"),
    "supermask": (),  # a callback of its own
    "synflow": ("Weights", "SynFlow", "Constant", "Sparsity"),
    "taylor_200_filters": ("Channels", "Taylor", "Rounds", "Count"),
    "weight_taylor": ("Weights", "WeightTaylor", "Cubic", "Sparsity"),
}


@each_recipe
def test_kinds(recipe: Path) -> None:
    callbacks = build("--config", str(recipe)).trainer.callbacks
    found = [c for c in callbacks if isinstance(c, IterativePruning)]
    parts = [(c.granularity, c.pruner.criterion, c.schedule, c.pruner.budget) for c in found]
    wanted = KINDS[recipe.stem]
    one = [wanted] if wanted and isinstance(wanted[0], str) else list(wanted)
    assert [tuple(type(part).__name__ for part in own) for own in parts] == one


@each_recipe
def test_recipe_runs_one_batch(recipe: Path) -> None:
    lighter = ["--data.image_size=32", "--data.num_workers=0"] if recipe.stem == "caltech101" else []
    cli = PruneCLI(args=["fit", "--config", str(recipe), "--trainer.fast_dev_run=true", *lighter])
    assert cli.trainer.global_step == 1
    assert cli.trainer.state.finished
    assert {"train_loss", "val_acc"} <= set(cli.trainer.callback_metrics)


def described(value: Any) -> Any:
    """Objects as types and values, so that two of them compare."""
    if isinstance(value, IterativePruning):
        names = ("granularity", "schedule", "criterion", "budget", "scope")
        return type(value), {name: held(value, name) for name in names}
    if is_dataclass(value):
        return type(value), {field.name: getattr(value, field.name) for field in fields(value)}
    public = {name: item for name, item in vars(value).items() if not name.startswith("_")}
    return type(value), {n: v for n, v in public.items() if isinstance(v, (bool, int, float, str, type(None)))}


def objects(cli: PruneCLI) -> dict[str, Any]:
    made = cli.model.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made
    return {
        "callbacks": [described(callback) for callback in cli.trainer.callbacks],
        "data": described(cli.datamodule),
        "model": dict(cli.model.hparams),
        "optimizer": (type(optimizer), optimizer.defaults),
        "scheduler": described(made["lr_scheduler"]["scheduler"]) if isinstance(made, dict) else None,
        "epochs": cli.trainer.max_epochs,
        "weights": float(sum(p.detach().double().sum() for p in cli.model.parameters())),  # the seed, too
    }


@each_recipe
def test_yaml_to_objects_to_yaml_is_the_identity(recipe: Path, tmp_path: Path) -> None:
    first = build("--config", str(recipe))
    # as Lightning's SaveConfigCallback writes it beside the logs
    dumped = first._parser("fit").dump(first.config["fit"], skip_none=False)
    (tmp_path / "config.yaml").write_text(dumped)
    second = build("--config", str(tmp_path / "config.yaml"))
    assert second._parser("fit").dump(second.config["fit"], skip_none=False) == dumped
    assert objects(second) == objects(first)


@each_recipe
def test_header(recipe: Path) -> None:
    lines = recipe.read_text().splitlines()
    header = [line for line in lines[: lines.index("seed_everything: 0")] if line]
    assert all(line.startswith("#") for line in header)
    assert re.fullmatch(r"# \S.*?: \S.{10,}", header[0])
    assert re.fullmatch(r"# Granularity: (weights|channels|blocks)", header[1])
    papers = [line for line in header if line.startswith("# Paper: ")]
    assert papers == header[2 : 2 + len(papers)] != []
    assert all(re.fullmatch(r"# Paper: .+ '.+', .*(19|20)\d\d", paper) for paper in papers)
    assert header[2 + len(papers) :][:2] == ["#", f"#   lightning-prune fit --config recipe:{recipe.stem}"]


# --- arguments ------------------------------------------------------------------------------------------------------


def test_callbacks_by_short_name() -> None:
    cli = build(
        "--config", str(QUICKSTART), "--trainer.callbacks+=SlimmingPenalty", "--trainer.callbacks.strength=1e-3"
    )
    (penalty,) = (c for c in cli.trainer.callbacks if isinstance(c, SlimmingPenalty))
    assert penalty.strength == 1e-3
    assert pruning_of(cli).pruner.criterion == Taylor()


def test_options_of_the_last_callback_for_a_sweep(tmp_path: Path) -> None:
    content = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    content["trainer"]["callbacks"].reverse()
    (config := tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    pruning = pruning_of(
        build("--config", str(config), "--trainer.callbacks.budget.keep=0.3", "--trainer.callbacks.schedule.count=4")
    )
    assert pruning.pruner.budget == MACs(keep=0.3)
    assert pruning.schedule.events == 4


@pytest.mark.parametrize(
    ("written", "criterion"),
    [
        ("Taylor", Taylor()),
        ("taylor", Taylor()),
        ("magnitude", Magnitude()),
        (None, Magnitude()),
        ({"class_path": "Taylor", "init_args": {"every_n_steps": 3}}, Taylor(every_n_steps=3)),
        ({"class_path": "lightning_prune.criteria.Taylor"}, Taylor()),
    ],
)
def test_criterion_as_a_word_or_an_object(tmp_path: Path, written: Any, criterion: Any) -> None:
    assert pruning_of(build("--config", variant(tmp_path / "c.yaml", criterion=written))).pruner.criterion == criterion


@pytest.mark.parametrize(
    ("written", "granularity"),
    [
        ({"class_path": "Weights"}, Weights()),
        ({"class_path": "lightning_prune.Weights"}, Weights()),
        ({"class_path": "Channels", "init_args": {"round_to": 8}}, Channels(round_to=8)),
        ("Weights", Weights()),
        (None, Channels()),
    ],
)
def test_granularity_is_the_class_that_is_named(tmp_path: Path, written: Any, granularity: Any) -> None:
    budget = {"class_path": "Sparsity", "init_args": {"sparsity": 0.5}}
    config = variant(tmp_path / "c.yaml", granularity=written, criterion="magnitude", budget=budget)
    built = pruning_of(build("--config", config)).granularity
    assert type(built) is type(granularity)
    assert built == granularity


USER_MODULE = '''
import torch
from lightning.pytorch import LightningModule


class Mine(LightningModule):
    """Not of this package."""

    def __init__(self, hidden: int = 5) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())
        self.log("val_loss", torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
'''


def test_a_module_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_task.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    content = yaml.safe_load(QUICKSTART.read_text())
    content["model"] = {"class_path": "my_own_task.Mine", "init_args": {"hidden": 12}}
    content["trainer"].update({"max_epochs": 2, "limit_train_batches": 2, "log_every_n_steps": 1})
    content["trainer"]["callbacks"][0]["init_args"]["schedule"]["init_args"] = {"start": 1, "every": 1, "count": 1}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    with contextlib.redirect_stdout(io.StringIO()) as output:
        cli = PruneCLI(args=["fit", "--config", "c.yaml"])
    assert cli.model.net[1].out_features < 12
    assert "not tested: there is no test_step or no test_dataloader" in output.getvalue()


def output_of(*args: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(args))
        except SystemExit as stop:
            if isinstance(stop.code, str):
                return 1, out.getvalue(), err.getvalue() + stop.code + "\n"
            return stop.code or 0, out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_help_of_a_command(command: str) -> None:
    code, text, _ = output_of(command, "--help")
    assert code == 0
    assert text.startswith(f"usage: lightning-prune {command} [options]\n\n")
    assert "--print_config" in text
    internals = ("<class", ":paramref:", ":class:", "``", "callbacks.trainer", "PrunedCheckpoints", "pytorch.cli.")
    assert [name for name in internals if name in text] == []
    for title in ("Trainer:", "Network, a LightningModule:", "Data, a LightningDataModule:", "Checkpoint:"):
        assert f"\n{title}\n" in text
    for name in ("lightning_prune.IterativePruning", "lightning_prune.AccuracyGuard", "lightning_prune.SparsityLogger"):
        assert name in text
    for name in ("lightning_prune.tasks.ImageClassifier", "lightning_prune.tasks.DigitsData"):
        assert name in text


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        (
            "--trainer.callbacks.help=IterativePruning",
            ["schedule", "lightning_prune.schedules.Rounds", "MACs", "Taylor"],
        ),
        (
            "--trainer.callbacks.help=AccuracyGuard",
            ["max_drop", "Largest accepted drop relative to the reference", "pause"],
        ),
        ("--trainer.callbacks.help=SlimmingPenalty", ["strength", "typically 1e-5 to 1e-3"]),
        ("--trainer.callbacks.help=SparsityLogger", ["histograms", "Whether to write histograms"]),
        ("--trainer.callbacks.help=PruningSummary", ["monitor", "Metric in the table"]),
        ("--model.help=ImageClassifier", ["num_classes", "Number of classes, at least 1"]),
        ("--data.help=DigitsData", ["val_fraction", "Share of all images for validation"]),
    ],
)
def test_help_of_a_class(topic: str, words: list[str]) -> None:
    code, text, _ = output_of("fit", topic)
    assert code == 0
    folded = " ".join(text.split())
    assert all(word in folded for word in words)


def test_help_lists_every_subcommand() -> None:
    code, text, _ = output_of("--help")
    assert code == 0
    listed = re.findall(r"^  (\w+) +(\S.+)$", text.split("subcommands:\n")[1], re.MULTILINE)
    assert listed == [(name, subcommand.help) for name, subcommand in SUBCOMMANDS.items()]
    assert [name for name, _ in listed] == ["fit", "validate", "test", "methods", "inspect"]
    assert output_of() == (2, text, "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fitt"], "there is no subcommand 'fitt'; did you mean 'fit'?"),
        (["method"], "there is no subcommand 'method'; did you mean 'methods'?"),
        (["predict"], "there is no subcommand 'predict'; use one of fit, validate, test, methods, inspect"),
    ],
)
def test_unknown_subcommands(args: list[str], message: str) -> None:
    assert output_of(*args) == (2, "", f"lightning-prune: {message}\n")


def test_version() -> None:
    assert output_of("--version") == (0, f"lightning-prune {lightning_prune.__version__}\n", "")


# --- recipes by name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["--config", "recipe:lamp"], ["--config=recipe:lamp"], ["-c", "recipe:lamp"]])
def test_a_recipe_by_name(args: list[str]) -> None:
    cli = build(*args, "--trainer.max_epochs=3")
    assert pruning_of(cli).pruner.criterion == LAMP()
    assert cli.trainer.max_epochs == 3


def test_print_config_prints_what_builds_the_same(tmp_path: Path) -> None:
    code, text, _ = output_of("fit", "--config", "recipe:lamp", "--print_config")
    assert code == 0
    (tmp_path / "copy.yaml").write_text(text)
    assert objects(build("--config", "copy.yaml")) == objects(build("--config", "recipe:lamp"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quickstat", "there is no recipe 'quickstat'; did you mean 'quickstart'?"),
        ("zzz", "there is no recipe 'zzz'; 'lightning-prune methods' lists them"),
        ("wanda_one_shot", "wanda_one_shot is a script, not a recipe: lightning-prune methods wanda_one_shot > "),
    ],
)
def test_unknown_recipes(name: str, message: str) -> None:
    code, _, text = output_of("fit", "--config", f"recipe:{name}")
    assert code == 1
    assert text.splitlines()[-1].startswith(f"lightning-prune: {message}")


# --- modules of the working directory -------------------------------------------------------------------------------


def test_the_installed_command_finds_modules_of_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "my_pkg").mkdir()
    (tmp_path / "my_pkg" / "__init__.py").write_text(USER_MODULE)
    script = tmp_path / "bin" / "lightning-prune"  # as pip writes it: its folder is the first on the path
    script.parent.mkdir()
    script.write_text("import sys\nfrom lightning_prune.cli import main\nsys.exit(main())\n")
    command = [sys.executable, str(script), "fit", "--model=my_pkg.Mine", "--print_config"]
    environment = {**os.environ, "PYTHONPATH": str(Path(lightning_prune.__file__).parents[1])}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["model"] == {"class_path": "my_pkg.Mine", "init_args": {"hidden": 5}}


# --- wrong configurations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init_args", "message"),
    [
        ({"criterion": "tayler"}, "criterion='tayler' is not known; did you mean 'Taylor'?"),
        ({"budget": {"class_path": "Ratio", "init_args": {"share": 50}}}, "Ratio share=50 must be a number in [0, 1]"),
        ({"granularity": {"class_path": "Weights"}}, "criterion Taylor(every_n_steps=1) does not score weights"),
        ({"schedule": {"class_path": "Rounds", "init_args": {"start": 0, "every": 1, "count": 2}}}, "starts at 0"),
        ({"scope": {"class_path": "Scope", "init_args": {"include": ["nowhere*"]}}}, "nowhere*"),
    ],
)
def test_a_wrong_configuration_is_one_line(tmp_path: Path, init_args: dict[str, Any], message: str) -> None:
    config = variant(tmp_path / "c.yaml", **init_args)
    code, _, text = output_of("fit", "--config", config, "--trainer.fast_dev_run=true")
    assert code == 1
    last = text.splitlines()[-1]
    assert last.startswith("lightning-prune: ")
    assert message in last
    assert "Traceback" not in text


def test_what_the_model_refuses_is_one_line() -> None:
    code, _, text = output_of("fit", "--config", str(QUICKSTART), "--model.model=resnt18")
    assert code == 1
    assert text.splitlines()[-1].startswith("lightning-prune: model='resnt18' is no known network. Did you mean")


def test_a_checkpoint_that_is_not_there_is_one_line() -> None:
    code, _, text = output_of("test", "--config", str(QUICKSTART), "--ckpt_path=nowhere.ckpt")
    assert code == 1
    assert text.splitlines()[-1] == "lightning-prune: Checkpoint file not found: nowhere.ckpt"


def test_other_errors_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = USER_MODULE.replace("super().__init__()", "super().__init__(); 1 + 'one'")
    (tmp_path / "my_broken_task.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    content = yaml.safe_load(QUICKSTART.read_text())
    content["model"] = {"class_path": "my_broken_task.Mine"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="unsupported operand") as caught:
        main(["fit", "--config", "c.yaml"])
    assert not isinstance(caught.value, MisconfigurationException)
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.slow
def test_the_command_fails_with_one_line(tmp_path: Path) -> None:
    content = yaml.safe_load(QUICKSTART.read_text())
    content["trainer"]["callbacks"] = [c for c in content["trainer"]["callbacks"] if c["class_path"] == "AccuracyGuard"]
    content["trainer"]["enable_progress_bar"] = False
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "lightning_prune.cli", "fit", "--config", "c.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert result.returncode == 1
    own = [line for line in result.stderr.splitlines() if line.startswith("lightning-prune: ")]
    assert own == ["lightning-prune: AccuracyGuard has no effect without pruning; add IterativePruning(...)"]
    assert "Traceback" not in result.stderr + result.stdout


@pytest.mark.slow
def test_the_command_on_two_processes(tmp_path: Path) -> None:
    shortened(tmp_path / "short.yaml")
    command = [sys.executable, "-m", "lightning_prune.cli", "fit", "--config", "short.yaml"]
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.enable_progress_bar=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, *ranks], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Pruning, round by round") == 1
    said = dict(line.split(": ", 1) for line in result.stdout.splitlines() if ": " in line)
    assert parameters(load_pruned(ImageClassifier, tmp_path / said["checkpoint"])) < parameters(
        load_pruned(ImageClassifier, tmp_path / said["dense network"])
    )


# --- train, then test from the file ---------------------------------------------------------------------------------


def shortened(path: Path) -> dict[str, Any]:
    """The quickstart with a narrow network and two rounds in four epochs; also written to ``path``."""
    content = yaml.safe_load(QUICKSTART.read_text())
    content["model"]["init_args"]["model_args"] = {"width": 8}
    content["trainer"].update({"max_epochs": 4, "limit_train_batches": 6, "log_every_n_steps": 1})
    content["trainer"]["callbacks"][0]["init_args"]["schedule"]["init_args"] = {"start": 2, "every": 1, "count": 2}
    content["trainer"]["callbacks"][1]["init_args"]["max_drop"] = 1.0
    path.write_text(yaml.safe_dump(content))
    return content


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A shortened quickstart through ``main``."""
    root = tmp_path_factory.mktemp("quickstart")
    content = shortened(root / "short.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        code, text, log = output_of("fit", "--config", "short.yaml")
    assert code == 0
    said = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    final = re.search(r"final ([\d.]+)", said["test_acc"])
    assert final is not None
    return SimpleNamespace(
        root=root,
        content=content,
        text=text,
        log=log,
        said=said,
        checkpoint=root / said["checkpoint"],
        accuracy=final[1],
    )


def test_fit_ends_with_the_summary(trained: SimpleNamespace) -> None:
    assert "Pruning, round by round" in trained.text
    assert trained.checkpoint.is_file()
    assert (trained.root / trained.said["dense network"]).is_file()
    logs = trained.root / trained.said["logs"].removeprefix("tensorboard --logdir ")
    assert list(logs.glob("events.out.tfevents.*"))
    assert (logs / "config.yaml").is_file()


def test_messages_go_to_the_standard_error_of_the_moment(trained: SimpleNamespace) -> None:
    # which a progress bar replaces; it would paint over what is written past it
    for message in ("val_acc ", "Pruning event 1 at epoch 2: parameters ", "Pruning event 2 at epoch 3: parameters "):
        assert message in trained.log


@pytest.mark.parametrize("pruner", [True, False], ids=["with pruner", "without pruner"])
@pytest.mark.parametrize("command", ["test", "validate"])
def test_the_pruned_file_loads(trained: SimpleNamespace, tmp_path: Path, command: str, pruner: bool) -> None:
    content = dict(trained.content)
    if not pruner:
        content["trainer"] = {**content["trainer"], "callbacks": []}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    cli = PruneCLI(args=[command, "--config", "c.yaml", "--ckpt_path", str(trained.checkpoint)])
    assert any(isinstance(c, PrunedCheckpoints) for c in cli.trainer.callbacks)
    assert any(isinstance(c, IterativePruning) for c in cli.trainer.callbacks) == pruner
    if command == "test":
        assert f"{float(cli.trainer.callback_metrics['test_acc']):.4f}" == trained.accuracy
    wanted = load_pruned(ImageClassifier, trained.checkpoint)
    assert parameters(cli.model) == parameters(wanted) < parameters(ImageClassifier(model_args={"width": 8}))


def test_the_saved_config_builds_the_same_run(trained: SimpleNamespace) -> None:
    version = trained.root / trained.said["logs"].removeprefix("tensorboard --logdir ")
    saved = build("--config", str(version / "config.yaml"))
    assert objects(saved) == objects(build("--config", str(trained.root / "short.yaml")))


def test_what_a_fit_needs_is_there_by_short_name() -> None:
    cli = build("--model=ImageClassifier", "--data=DigitsData", "--trainer.logger=false", "--trainer.accelerator=cpu")
    assert isinstance(cli.model, ImageClassifier)
    assert isinstance(cli.datamodule, DigitsData)
    assert not any(isinstance(c, (IterativePruning, AccuracyGuard, PruningSummary)) for c in cli.trainer.callbacks)
    assert isinstance(cli.trainer, pl.Trainer)
