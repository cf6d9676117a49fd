"""Writes the files of which ``test_old_files.py`` tests that they load: ``python tests/files/write.py``.

The files go into a folder named after the version of the package, such as ``0.1.0/``. It must not exist: files of a
version that is out are never written again. Run this with a new version where it has changed what a file holds, with
a new number in ``lightning_prune.__version__`` or ``--name 0.2.0``; the tests take every folder that is there. A new
kind of file gets a new entry in ``old_nets.RUNS``; tests skip what an older folder lacks.

``0.1.0/`` was written by version 0.1.0 as it was before its modules moved into sub-packages, with PyTorch 2.14.1 and
Lightning 2.6.6.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from old_nets import NETS, RUNS, Events, OldLit, Run, Save, images, nonzero, outputs, size, trainer_for
from torch import Tensor, nn

import lightning_prune
from lightning_prune import Blocks, IterativePruning, Scope, Weights, load_pruned, prune_once
from lightning_prune.budgets import Count, Ratio, Sparsity
from lightning_prune.cli import main as command_line
from lightning_prune.criteria import BlockInfluence, MeanActivation, Random, Taylor, Wanda
from lightning_prune.file_size import write_compressed
from lightning_prune.schedules import Rounds
from lightning_prune.tasks import ImageClassifier

HERE = Path(__file__).parent
PLACE = "/written/here"  # stands in files for the folder of the training

CHANNELS = [
    {
        "class_path": "IterativePruning",
        "init_args": {
            "schedule": {"class_path": "Rounds", "init_args": {"start": 1, "every": 1, "count": 2}},
            "criterion": {"class_path": "Taylor", "init_args": {"every_n_steps": 2}},
            "granularity": {"class_path": "Channels", "init_args": {"round_to": 2, "ranking": "isomorphic"}},
            "budget": {
                "class_path": "All",
                "init_args": {
                    "budgets": [
                        {"class_path": "MACs", "init_args": {"keep": 0.5}},
                        {"class_path": "Params", "init_args": {"keep": 0.6}},
                    ]
                },
            },
            "scope": {"exclude": ["network.fc"]},
        },
    },
    {"class_path": "AccuracyGuard", "init_args": {"monitor": "val_acc", "max_drop": 0.5, "on_drop": "pause"}},
    {"class_path": "SlimmingPenalty", "init_args": {"strength": 0.0001}},
    {"class_path": "GroupLasso", "init_args": {"strength": 0.0001}},
    {"class_path": "FinetuneLR", "init_args": {"scale": 0.5}},
    {"class_path": "RecalibrateBatchNorm", "init_args": {"batches": 2}},
    {"class_path": "Distillation"},
    {"class_path": "SparsityLogger", "init_args": {"monitor": "val_acc"}},
    {"class_path": "PruningSummary", "init_args": {"monitor": "val_acc"}},
]
MASKS = [
    {"class_path": "Rewind", "init_args": {"to": 1}},
    {
        "class_path": "IterativePruning",
        "init_args": {
            "schedule": {"class_path": "Cubic", "init_args": {"start": 1, "end": 2}},
            "criterion": {"class_path": "Magnitude", "init_args": {"p": 1}},
            "granularity": {"class_path": "Weights", "init_args": {"block": [2, 2]}},
            "budget": {"class_path": "ERK", "init_args": {"sparsity": 0.5}},
        },
    },
    {
        "class_path": "IterativePruning",
        "init_args": {
            "schedule": {"class_path": "Steps", "init_args": {"times": [1, 2], "fractions": [0.5, 1.0]}},
            "criterion": {"class_path": "BlockInfluence"},
            "granularity": {"class_path": "Blocks"},
            "budget": {"class_path": "Count", "init_args": {"count": 1}},
        },
    },
    {"class_path": "SparsityLogger"},
]
CONFIGS = {
    "channels": ("small_resnet", {"width": 4}, CHANNELS),
    "masks": ("small_vit", {"width": 8, "heads": 2, "depth": 4}, MASKS),
}


def main(folder: Path) -> None:
    folder.mkdir()
    expected: dict[str, Any] = {"inputs": images(3)}
    for name, run in RUNS.items():
        expected[name] = write_run(folder, name, run)
    expected["once"] = write_once(folder)
    expected["whole"] = write_whole(folder)
    write_during_training(folder)
    for name, (model, arguments, callbacks) in CONFIGS.items():
        write_config(folder, name, model, arguments, callbacks)
    digits = torch.cat([images(3), images(3)], dim=2).flatten(1).reshape(3, 1, 8, 8)
    classifier = load_pruned(ImageClassifier, folder / "config_channels.pt")
    expected["config_channels"] = {"inputs": digits, "outputs": outputs(classifier, digits)}
    torch.save(expected, folder / "expected.pt")
    report(folder, expected)


def write_run(folder: Path, name: str, run: Run) -> dict[str, Any]:
    """A checkpoint in the middle of pruning, one with weights alone after it, and what comes out."""
    torch.manual_seed(0)
    lit, inputs = run.module(), images(3)
    dense = size(lit.net)
    with tempfile.TemporaryDirectory() as place:
        middle, accepted, last = Path(place, "middle.pt"), Path(place, "accepted"), Path(place, "last.pt")
        events, save = Events(), Save(run.saved, middle, accepted)
        trainer = trainer_for(Path(place, "run"), [*run.callbacks(), events, save], run.epochs)
        trainer.fit(lit)
        trainer.save_checkpoint(last, weights_only=True)
        write_elsewhere(middle, folder / f"{name}.pt", str(Path(place, "run")))
        if name == "channels":
            write_elsewhere(last, folder / "weights_only.pt", str(Path(place, "run")))
        if name == "blocks":
            torch.save(lit, folder / "whole_module.pt")
            torch.save(lit.net, folder / "whole_part.pt")
        states = torch.load(middle, weights_only=True)["callbacks"].values()
        used = [state["snapshot"]["path"] for state in states if state.get("snapshot")]
        for file in used:
            found = next(accepted.rglob(Path(file).name))
            target = folder / name / found.relative_to(accepted)
            target.parent.mkdir(parents=True)
            write_elsewhere(found, target, str(Path(place, "run")))
    loaded = load_pruned(OldLit, folder / f"{name}.pt")
    return {
        "outputs": outputs(loaded.net, inputs),
        "last_outputs": outputs(lit.net, inputs),
        "sizes": [dense, size(loaded.net), size(lit.net)],
        "later_events": [event for event in events.found if event[0] > run.saved],
        "nonzero": [nonzero(loaded.net), nonzero(lit.net)],
        **({"average_outputs": outputs(loaded.average, inputs)} if hasattr(loaded, "average") else {}),
    }


def write_elsewhere(source: Path, target: Path, place: str) -> None:
    """As it was written, but without the name of the folder it was written in."""
    torch.save(renamed(torch.load(source, weights_only=True), place), target)


def renamed(content: Any, place: str, new: str = PLACE) -> Any:
    """``content`` with ``new`` instead of ``place`` in all strings; dicts stay the objects they are."""
    if isinstance(content, str):
        return content.replace(place, new)
    if isinstance(content, dict):
        for key in list(content):
            content[key] = renamed(content[key], place, new)
        return content
    if isinstance(content, (list, tuple)):
        return type(content)(renamed(entry, place, new) for entry in content)
    return content


def write_once(folder: Path) -> dict[str, Any]:
    """State dicts after ``prune_once``: of a network, of a LightningModule, of the network in it, and compressed."""
    torch.manual_seed(0)
    lit, inputs = OldLit("recurrent"), images(3)
    dense = size(lit.net)
    prune_once(lit, inputs, budget=Ratio(0.5))
    torch.save(lit.state_dict(), folder / "once_module.pt")
    torch.save(lit.net.state_dict(), folder / "once_part.pt")
    torch.save(lit, folder / "whole_channels.pt")
    write_compressed(lit.net.state_dict(), folder / "once_compressed.pt")
    masked = NETS["convolutions"]()
    prune_once(masked, inputs, granularity=Weights(), budget=Sparsity(0.5))
    torch.save(masked.state_dict(), folder / "once_weights.pt")
    blocks = NETS["transformer"]()
    remove_blocks(blocks)
    torch.save(blocks.state_dict(), folder / "once_blocks.pt")
    return {
        "outputs": outputs(lit.net, inputs),
        "weights_outputs": outputs(masked, inputs),
        "blocks_outputs": outputs(blocks, tokens()),
        "sizes": [dense, size(lit.net)],
    }


def write_whole(folder: Path) -> dict[str, Any]:
    """A network that was pickled as a whole, in which two identities stand for what was removed."""
    torch.manual_seed(0)
    net = NETS["transformer"]()
    remove_blocks(net)
    torch.save(net, folder / "whole.pt")
    return {"outputs": outputs(net, tokens())}


class SaveWhole(Callback):
    """Pickles the network in the last batch before the second event, with the hooks of the criterion."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 2 * trainer.num_training_batches:
            torch.save(pl_module.net, self.path)


def write_during_training(folder: Path) -> None:
    """Networks that were pickled as a whole while criteria observed them, and their outputs."""
    runs = {
        "taylor": IterativePruning(Rounds(1, 1, 2), Ratio(0.5), Taylor()),
        "mean_activation": IterativePruning(Rounds(1, 1, 2), Ratio(0.5), MeanActivation()),
        "wanda": IterativePruning(Rounds(1, 1, 2), Sparsity(0.5), Wanda(), Weights()),
        "block_influence": IterativePruning(Rounds(1, 1, 2), Count(1), BlockInfluence(), Blocks()),
    }
    found = {}
    for name, pruning in runs.items():
        path = folder / f"during_{name}.pt"
        with tempfile.TemporaryDirectory() as place:
            net = {"wanda": "perceptron", "block_influence": "residual"}.get(name, "convolutions")
            trainer_for(Path(place), [pruning, SaveWhole(path)], 3).fit(OldLit(net))
        found[name] = outputs(torch.load(path, weights_only=False), images(3))
    torch.save(found, folder / "during_training.pt")


def remove_blocks(net: nn.Module) -> None:
    scope = Scope(include=["1.layers.1", "2"])
    prune_once(net, tokens(), granularity=Blocks(), criterion=Random(), budget=Count(2), scope=scope)


def tokens() -> Tensor:
    """The images as sequences."""
    return images(3).flatten(2).transpose(1, 2)


def write_config(folder: Path, name: str, model: str, arguments: dict[str, Any], callbacks: list[Any]) -> None:
    """The ``config.yaml`` that the command line writes beside the logs."""
    content = {
        "seed_everything": 0,
        "model": {
            "class_path": "ImageClassifier",
            "init_args": {
                "model": model,
                "num_classes": 10,
                "in_channels": 1,
                "model_args": arguments,
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9}},
                "lr_scheduler": {
                    "class_path": "torch.optim.lr_scheduler.CosineAnnealingLR",
                    "init_args": {"T_max": 3},
                },
            },
        },
        "data": {"class_path": "DigitsData", "init_args": {"batch_size": 32}},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 3,
            "limit_train_batches": 3,
            "limit_val_batches": 1,
            "enable_progress_bar": False,
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": name}},
            "callbacks": callbacks,
        },
    }
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        try:
            Path("given.yaml").write_text(yaml.safe_dump(content))
            command_line(["fit", "--config", "given.yaml"])
            (written,) = Path().rglob("config.yaml")
            shutil.copy(written, folder / f"config_{name}.yaml")
            final = list(Path().rglob("final.ckpt"))  # written where there is a PruningSummary
            if final:
                write_elsewhere(final[0], folder / f"config_{name}.pt", place)
        finally:
            os.chdir(before)


def report(folder: Path, expected: dict[str, Any]) -> None:
    for name, entry in expected.items():
        if isinstance(entry, dict):
            print(name, {key: value for key, value in entry.items() if not isinstance(value, Tensor)})
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        print(f"{path.stat().st_size:8,} {path.relative_to(folder)}")
    print(f"{sum(path.stat().st_size for path in files):8,} in all")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--name", default=lightning_prune.__version__, help="name of the folder; by default the version"
    )
    target = HERE / parser.parse_args().name
    if target.exists():
        parser.error(f"{target} exists; files of a version that is out stay as they are. Give another --name")
    main(target)
