"""Every criterion on the digits task: python benchmarks/criteria.py [--seeds 0 1 2 3 4] [--only Magnitude ...].

For each seed one small residual network is trained; each run prunes a copy of it step by step and trains on with the
same budget of epochs. What prunes before training (``BEFORE``) starts from the initial weights of that network and
trains as long as dense training and fine-tuning take together. Controls: the dense network trained on, a network built
with the widths that ``Ratio`` leaves and trained from scratch for both budgets together, and ``Random`` as the floor.
Figures are accuracies on the validation split after the last epoch, mean and standard deviation over seeds; nothing is
selected by them.

`python benchmarks/criteria.py --page docs/methods.md` measures nothing: it writes what was measured into the page.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import platform
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from method_page import fill, summary
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from lightning_prune import Channels, IterativePruning, Weights
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.criteria import CRITERIA, Criterion
from lightning_prune.schedules import Constant, Cubic, Rounds
from lightning_prune.tasks import DigitsData, ImageClassifier

SPARSITIES = (0.6, 0.8, 0.9)
RATIOS = (0.5, 0.7)
WIDTH = 8
DENSE_EPOCHS, TUNING_EPOCHS = 12, 4
BEFORE = ("SNIP", "GraSP", "SynFlow")
Cell = tuple[str, str, float]  # criterion, granularity, share removed


class Digits(ImageClassifier):
    """A small residual network whose learning rate rises and falls once in a training."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__("small_resnet", 10, 1, {"width": width})

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": OneCycleLR(optimizer, 0.1, total_steps=steps), "interval": "step"}]


def train(module: LightningModule, epochs: int, seed: int, *callbacks: Any) -> float:
    """Accuracy on the validation split after the last epoch."""
    seed_everything(seed, verbose=False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        limit_val_batches=0.0 if epochs == 0 else 1.0, check_val_every_n_epoch=max(1, epochs),
    )  # fmt: skip
    trainer.fit(module, DigitsData(batch_size=64))
    return float(trainer.callback_metrics["val_acc"])


def pruning(criterion: Criterion, granularity: str, share: float) -> IterativePruning:
    """Half of the fine-tuning prunes, or the first batch where it is done before training."""
    before = type(criterion).__name__ in BEFORE
    if granularity == "weights":
        when: Any = Constant(1, "step") if before else Cubic(0.0, 0.5, every=0.05, unit="share")
        return IterativePruning(when, Sparsity(share), criterion, Weights())
    when = Constant(1, "step") if before else Rounds(0.1, every=0.1, count=4, unit="share")
    return IterativePruning(when, Ratio(share, per_layer=False), criterion, Channels())


def cells(only: list[str]) -> list[Cell]:
    found = []
    for cls in CRITERIA:
        if not only or cls.__name__ in only:
            found += [(cls.__name__, "weights", share) for share in SPARSITIES if cls.scores_weights]
            found += [(cls.__name__, "channels", share) for share in RATIOS if cls.scores_channels]
    return found


def run(seed: int, chosen: list[Cell]) -> list[dict[str, Any]]:
    """All cells of one seed."""
    torch.manual_seed(seed)
    initial = Digits()
    dense = copy.deepcopy(initial)
    rows = [row("dense", "", 0.0, seed, partial(train, dense, DENSE_EPOCHS, seed))]
    rows.append(row("dense, trained on", "", 0.0, seed, partial(train, copy.deepcopy(dense), TUNING_EPOCHS, seed)))
    for share in RATIOS:
        torch.manual_seed(seed)
        small = Digits(round(WIDTH * (1 - share)))
        rows.append(row("small, from scratch", "channels", share, seed, partial(train, small, both(), seed)))
    known = {cls.__name__: cls for cls in CRITERIA}
    for name, granularity, share in chosen:
        before = name in BEFORE
        module = copy.deepcopy(initial if before else dense)
        callback = pruning(known[name](), granularity, share)
        epochs = both() if before else TUNING_EPOCHS
        rows.append(row(name, granularity, share, seed, partial(train, module, epochs, seed, callback)))
        check(module, callback, granularity, share)
        print(f"seed {seed}: {name}, {granularity} {share}: {rows[-1]['accuracy']:.4f}", file=sys.stderr, flush=True)
    return rows


def both() -> int:
    return DENSE_EPOCHS + TUNING_EPOCHS


def row(name: str, granularity: str, share: float, seed: int, training: Callable[[], float]) -> dict[str, Any]:
    began = time.perf_counter()
    accuracy = training()
    seconds = round(time.perf_counter() - began, 2)
    return {
        "method": name, "granularity": granularity, "share": share, "seed": seed, "accuracy": accuracy,
        "seconds": seconds,
    }  # fmt: skip


def check(module: nn.Module, callback: IterativePruning, granularity: str, share: float) -> None:
    """What was asked for has been removed."""
    if granularity == "weights":
        matrices = [p for p in module.parameters() if p.dim() > 1]
        zeros = sum(int((p == 0).sum()) for p in matrices) / sum(p.numel() for p in matrices)
        assert abs(zeros - share) < 0.01, (callback.pruner.criterion, zeros)
    else:
        origin = callback.pruner.origin
        assert origin is not None
        assert callback.pruner.fraction == 1, callback.pruner.criterion
        assert sum(p.numel() for p in module.parameters()) < origin.params, callback.pruner.criterion


def table(rows: list[dict[str, Any]]) -> Table:
    """A row for each method, a column for each share."""
    columns: list[tuple[str, float]] = [
        ("", 0.0),
        *(("weights", s) for s in SPARSITIES),
        *(("channels", r) for r in RATIOS),
    ]
    shown = Table(title="Validation accuracy on the digits, in percent: mean ± standard deviation over seeds")
    shown.add_column("method", no_wrap=True)
    for granularity, share in columns:
        shown.add_column(f"{granularity} {share:.0%}" if granularity else "dense", justify="right")
    for name in dict.fromkeys(r["method"] for r in rows):
        shown.add_row(name, *(summary([r for r in rows if cell_of(r) == (name, *column)]) for column in columns))
    return shown


def cell_of(row: dict[str, Any]) -> Cell:
    return row["method"], row["granularity"], row["share"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", default=[], choices=[cls.__name__ for cls in CRITERIA])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--page", type=Path, help="measure nothing; write the figures of the JSON file into this page")
    options = parser.parse_args()
    if options.page is not None:
        measured = json.loads(options.json.read_text())["rows"]
        options.page.write_text(fill(options.page.read_text(encoding="utf-8"), measured), encoding="utf-8")
        return
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    rows = [found for seed in options.seeds for found in run(seed, cells(options.only))]
    content = {
        "versions": {package: version(package) for package in ("torch", "lightning", "lightning-prune")},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "epochs": {"dense": DENSE_EPOCHS, "tuning": TUNING_EPOCHS},
        "rows": rows,
    }
    options.json.write_text(json.dumps(content, indent=1) + "\n")
    Console(width=max(Console().width, 140), highlight=False).print(table(rows))


if __name__ == "__main__":
    main()
