"""Every criterion on the digits task: python benchmarks/criteria.py [--seeds 0 1 2 3 4] [--only Magnitude ...].

For each seed one small residual network is trained; each run prunes a copy of it step by step and trains on with the
same budget of epochs. What prunes before training (``BEFORE``) starts from the initial weights of that network and
trains as long as dense training and fine-tuning take together; so does what learns its masks, rewinds, or trains under
a penalty first. ``MagnitudeIncrease`` compares with these initial weights. ``common/variants.py`` has the methods that
are more than a criterion. Controls: the dense network trained on, a network built with the widths of ``Ratio`` and
trained from scratch for both budgets together, and ``Random`` as the floor. Blocks are removed from a network of its
own, with three of them a stage, of which seven can go, and attention heads from a small vision transformer that has 32.
Figures are accuracies on the validation split after the last epoch, mean and standard deviation over seeds; nothing but
the strength of two penalties is selected by them.

`python benchmarks/criteria.py --page docs/pages/reference/methods.md` measures nothing: it writes what was measured
into the page.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.method_page import ORDER, fill, summary
from common.provenance import provenance
from common.quiet import quiet
from common.tables import RESULTS
from common.variants import BLOCK_RATIOS, RATIOS, SPARSITIES, VARIANTS, gradually, in_rounds
from lightning.pytorch import LightningModule, Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from lightning_prune import Blocks, Channels, IterativePruning, Weights
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.callbacks import Supermask
from lightning_prune.criteria import CRITERIA, Criterion, MagnitudeIncrease, Sensitivity
from lightning_prune.schedules import Constant
from lightning_prune.tasks import DigitsData, ImageClassifier
from lightning_prune.tasks.small_vit import SelfAttention

WIDTH = 8
DENSE_EPOCHS, TUNING_EPOCHS = 12, 4
BEFORE = ("SNIP", "GraSP", "SynFlow")
Cell = tuple[str, str, float]  # criterion, granularity, share removed


class Digits(ImageClassifier):
    """A small residual network whose learning rate rises and falls once in a training, or in ``cycle`` epochs."""

    def __init__(self, width: int = WIDTH, blocks: int = 1) -> None:
        super().__init__("small_resnet", 10, 1, {"width": width, "blocks": blocks})
        self.cycle: int | None = None

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        if self.cycle is not None:
            steps = steps // (self.trainer.max_epochs or 1) * self.cycle
        return [optimizer], [{"scheduler": OneCycleLR(optimizer, 0.1, total_steps=steps), "interval": "step"}]


class DigitsViT(ImageClassifier):
    """A small vision transformer, likewise."""

    def __init__(self) -> None:
        super().__init__("small_vit", 10, 1)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 0.0003)
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": OneCycleLR(optimizer, 0.003, total_steps=steps), "interval": "step"}]


def train(module: LightningModule, epochs: int, seed: int, *callbacks: Any) -> float:
    """Accuracy on the validation split after the last epoch."""
    seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as folder:  # where teachers are kept
        trainer = Trainer(
            accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
            limit_val_batches=0.0 if epochs == 0 else 1.0, check_val_every_n_epoch=max(1, epochs),
        )  # fmt: skip
        trainer.fit(module, DigitsData(batch_size=64))
    return float(trainer.callback_metrics["val_acc"])


def pruning(criterion: Criterion, granularity: str, share: float) -> IterativePruning:
    """Half of the fine-tuning prunes, or the first batch where it is done before training."""
    before = type(criterion).__name__ in BEFORE
    if granularity == "weights":
        when: Any = Constant(1, "step") if before else gradually()
        return IterativePruning(when, Sparsity(share), criterion, Weights())
    if granularity == "blocks":
        return IterativePruning(in_rounds(), Ratio(share), criterion, Blocks())
    when = Constant(1, "step") if before else in_rounds()
    return IterativePruning(when, Ratio(share, per_layer=False), criterion, Channels())


def callbacks_of(name: str, granularity: str, share: float, initial: nn.Module) -> list[Any]:
    """The pruner and what goes with it, or what takes its place."""
    if name in VARIANTS:
        return VARIANTS[name].callbacks(share)
    known = {cls.__name__: cls for cls in CRITERIA}
    criterion = Sensitivity("val_acc") if name == "Sensitivity" else known[name]()
    callback = pruning(criterion, granularity, share)
    if isinstance(criterion, MagnitudeIncrease):
        assert callback.pruner.statistics is not None
        totals = {name: parameter.detach().clone() for name, parameter in initial.named_parameters()}
        callback.pruner.statistics.load_state_dict({"totals": totals, "steps": 1})
    return [callback]


def cells(only: list[str]) -> list[Cell]:
    found = []
    for cls in CRITERIA:
        if not only or cls.__name__ in only:
            found += [(cls.__name__, "weights", share) for share in SPARSITIES if cls.scores_weights]
            found += [(cls.__name__, "channels", share) for share in RATIOS if cls.scores_channels]
            found += [(cls.__name__, "blocks", share) for share in BLOCK_RATIOS if cls.scores_blocks]
    for name, variant in VARIANTS.items():
        if not only or name in only:
            found += [(name, variant.granularity, share) for share in variant.shares]
    return found


def run(seed: int, chosen: list[Cell]) -> list[dict[str, Any]]:
    """All cells of one seed."""
    torch.manual_seed(seed)
    initial = Digits()
    dense = copy.deepcopy(initial)
    rows = [row("dense", "", 0.0, seed, partial(train, dense, DENSE_EPOCHS, seed))]
    rows.append(row("dense, trained on", "", 0.0, seed, partial(train, copy.deepcopy(dense), TUNING_EPOCHS, seed)))
    torch.manual_seed(seed)
    deep = Digits(blocks=3)
    if any(granularity == "blocks" for _, granularity, _ in chosen):
        rows.append(row("dense, nine blocks", "", 0.0, seed, partial(train, deep, DENSE_EPOCHS, seed)))
    torch.manual_seed(seed)
    transformer = DigitsViT()
    if any(granularity == "heads" for _, granularity, _ in chosen):
        for name, epochs in (("dense, transformer", DENSE_EPOCHS), ("dense, transformer, trained on", TUNING_EPOCHS)):
            module = transformer if epochs == DENSE_EPOCHS else copy.deepcopy(transformer)
            rows.append(row(name, "", 0.0, seed, partial(train, module, epochs, seed)))
    starts: dict[str, LightningModule] = {"blocks": deep, "heads": transformer}
    for share in RATIOS:
        torch.manual_seed(seed)
        small = Digits(round(WIDTH * (1 - share)))
        rows.append(row("small, from scratch", "channels", share, seed, partial(train, small, both(), seed)))
    for name, granularity, share in chosen:
        before = name in BEFORE or (name in VARIANTS and VARIANTS[name].before)
        module = copy.deepcopy(initial if before else starts.get(granularity, dense))
        if name in VARIANTS and VARIANTS[name].cycle is not None:
            module.cycle = VARIANTS[name].cycle
        callbacks = callbacks_of(name, granularity, share, initial)
        epochs = both() if before else TUNING_EPOCHS
        rows.append(row(name, granularity, share, seed, partial(train, module, epochs, seed, *callbacks)))
        (pruner,) = (c for c in callbacks if isinstance(c, (IterativePruning, Supermask)))
        check(module, pruner, name, granularity, share)
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


def check(module: nn.Module, callback: Any, name: str, granularity: str, share: float) -> None:
    """What was asked for has been removed."""
    if granularity == "weights":
        matrices = [p for p in module.parameters() if p.dim() > 1]
        zeros = sum(int((p == 0).sum()) for p in matrices) / sum(p.numel() for p in matrices)
        assert abs(zeros - share) < 0.03, (name, zeros)  # layers without whole blocks stay
    elif granularity == "blocks":
        assert sum(type(m).__name__ == "BasicBlock" for m in module.modules()) == 9 - round(7 * share), name
    elif granularity == "heads":
        left = sum(m.qkv.out_features for m in module.modules() if isinstance(m, SelfAttention)) / 24
        assert left == 32 * (1 - share), (name, left)
    else:
        reference = callback.pruner.dense
        assert reference is not None
        assert callback.pruner.fraction == 1, name
        assert sum(p.numel() for p in module.parameters()) < reference.params, name


def table(rows: list[dict[str, Any]]) -> Table:
    """A row for each method, a column for each share."""
    columns = sorted({cell_of(r)[1:] for r in rows}, key=lambda c: (ORDER.index(c[0]), c[1]))
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
    parser.add_argument("--only", nargs="+", default=[], choices=[*(cls.__name__ for cls in CRITERIA), *VARIANTS])
    parser.add_argument("--granularity", choices=ORDER[1:])
    parser.add_argument("--add", action="store_true", help="keep the rows of the JSON file that are not measured now")
    parser.add_argument("--json", type=Path, default=RESULTS / "criteria.json")
    parser.add_argument("--page", type=Path, help="measure nothing; write the figures of the JSON file into this page")
    options = parser.parse_args()
    if options.page is not None:
        measured = json.loads(options.json.read_text())["rows"]
        options.page.write_text(fill(options.page.read_text(encoding="utf-8"), measured), encoding="utf-8")
        return
    quiet()
    chosen = [c for c in cells(options.only) if options.granularity in (None, c[1])]
    rows = [found for seed in options.seeds for found in run(seed, chosen)]
    if options.add:
        new = {(*cell_of(r), r["seed"]) for r in rows}
        old = json.loads(options.json.read_text())["rows"]
        rows = [r for r in old if (*cell_of(r), r["seed"]) not in new] + rows
    content = {
        **provenance(),
        "epochs": {"dense": DENSE_EPOCHS, "tuning": TUNING_EPOCHS},
        "rows": rows,
    }
    options.json.write_text(json.dumps(content, indent=1) + "\n")
    Console(width=max(Console().width, 140), highlight=False).print(table(rows))


if __name__ == "__main__":
    main()
