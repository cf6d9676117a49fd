"""The methods that recipes and examples show: what they are called, what they do, and where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Method:
    """One line of ``lightning-prune methods``.

    Attributes:
        name: What it is called; its section in ``docs/methods.md`` has this title.
        line: What it does.
        file: Its recipe or its script in the repository.
        removes: What goes.
    """

    name: str
    line: str
    file: str
    removes: Literal["weights", "channels", "blocks"]

    @property
    def short(self) -> str:
        """The name of its file without folder and suffix."""
        return PurePosixPath(self.file).stem

    @property
    def command(self) -> str:
        """What runs it, in the repository."""
        start = "lightning-prune fit --config" if self.file.endswith(".yaml") else "python"
        return f"{start} {self.file}"


def _weights(name: str, line: str, recipe: str) -> Method:
    return Method(name, line, f"recipes/{recipe}.yaml", "weights")


def _channels(name: str, line: str, recipe: str) -> Method:
    return Method(name, line, f"recipes/{recipe}.yaml", "channels")


def _blocks(name: str, line: str, recipe: str) -> Method:
    return Method(name, line, f"recipes/{recipe}.yaml", "blocks")


METHODS = (
    _weights("Gradual magnitude", "the smallest, many early, few late", "gradual_magnitude"),
    _weights("Iterative magnitude", "the same share of what is left", "iterative_magnitude"),
    _weights("Lottery tickets", "the same, from the initial weights", "lottery_ticket"),
    _weights("Magnitude increase", "least growth since the start", "magnitude_increase"),
    _weights("Weight rewinding", "the same, from early weights", "weight_rewinding"),
    _weights("LR rewinding", "the same, from early rates", "lr_rewinding"),
    _weights("One-cycle pruning", "the smallest, from first to last", "one_cycle"),
    _weights("ERK", "by shape, most of wide layers", "erk"),
    _weights("Layer ratios", "a share by patterns on names", "layer_ratios"),
    _weights("LAMP", "small beside the rest of a layer", "lamp"),
    _weights("Weight Taylor", "least (gradient x weight)^2", "weight_taylor"),
    _weights("OBD, Fisher", "least weight^2 x mean gradient^2", "fisher"),
    _weights("OBD, Hessian", "least weight^2 x curvature", "hessian"),
    _weights("Movement pruning", "what training moves towards zero", "movement"),
    _weights("Soft movement", "what does not outgrow a penalty", "soft_movement"),
    _weights("RigL", "smallest, others back by gradient", "rigl"),
    _weights("SET", "smallest, others back at random", "set"),
    _weights("SNIP", "before training, by gradient", "snip"),
    _weights("GraSP", "before training, by gradient flow", "grasp"),
    _weights("SynFlow", "before training, without data", "synflow"),
    _weights("Supermask", "learned; weights are not trained", "supermask"),
    Method("Wanda", "no training, |weight| x its input", "examples/wanda_one_shot.py", "weights"),
    _weights("2:4 and N:M", "the two smallest of every four", "two_of_four"),
    _weights("Block sparsity", "blocks, rows, columns, kernels", "block_sparse"),
    _channels("L1 filters", "least L1, once, then fine-tuned", "l1_filters"),
    _channels("Taylor rank", "least |activation x gradient|", "quickstart"),
    _channels("Distillation", "the dense network teaches on", "distillation"),
    _channels("200 filters a round", "the 200 lowest by Taylor rank", "taylor_200_filters"),
    _channels("Caltech-101", "200 filters a round, pretrained", "caltech101"),
    _channels("Gate Taylor", "least gradient of norms' gates", "gate_taylor"),
    _channels("Network slimming", "least batch-norm scale, under L1", "network_slimming"),
    _channels("Slimming threshold", "scales below a value, under L1", "slimming_threshold"),
    _channels("Group lasso", "least norm, under a group penalty", "group_lasso"),
    _channels("Growing penalty", "least L1, after a growing penalty", "growing_penalty"),
    _channels("FPGM", "what other filters can replace", "geometric_median"),
    _channels("Isomorphic ranking", "the lowest of layers of each kind", "isomorphic"),
    _channels("Mean activation", "what puts out least", "mean_activation"),
    _channels("APoZ", "what a ReLU most often makes zero", "apoz"),
    _channels("Attention heads", "heads the loss depends on least", "attention_heads"),
    _channels("Several budgets", "until all of them are met", "two_budgets"),
    _channels("Two pruners", "channels, then weights of the rest", "two_pruners"),
    _channels("Latency", "until a pass is fast enough", "latency"),
    _blocks("Block sensitivity", "least accuracy lost when skipped", "blocks"),
    _blocks("Block influence", "what changes its input least", "block_influence"),
)


_TITLES = {
    "Weights, which are masked": "weights",
    "Channels, which are removed": "channels",
    "Blocks, which are removed": "blocks",
}


def show_methods(console: Console | None = None) -> None:
    """Print all methods, and how to run one."""
    console = console or Console()
    for title, removes in _TITLES.items():
        console.print(_table(title, [method for method in METHODS if method.removes == removes]))
    hints = ["Run a recipe in the repository: lightning-prune fit --config recipes/NAME.yaml"]
    hints += [f"{m.name} is a script: {m.command}" for m in METHODS if not m.file.startswith("recipes/")]
    hints += ["Formulas, papers, and when to use which: docs/methods.md"]
    for hint in hints:
        console.print(hint, highlight=False, soft_wrap=True)


def _table(title: str, methods: Sequence[Method]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True, min_width=max(len(method.name) for method in METHODS))
    table.add_column("what goes")
    table.add_column("recipe", no_wrap=True, min_width=max(len(method.short) for method in METHODS))
    for method in methods:
        table.add_row(method.name, method.line, method.short)
    return table
