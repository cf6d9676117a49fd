"""`torch.compile`: however a network is compiled, it is pruned, and still compiled after twelve events."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.training import Events, Lit, fit, widths
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_prune import IterativePruning
from lightning_prune.budgets import Count, Ratio
from lightning_prune.schedules import Constant, Rounds

EVENTS = 12


class Graphs(Callback):
    """A backend of `torch.compile` that counts how often compiled graphs run in the training steps of each epoch."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self._runs = 0

    def backend(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        compiled = torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

        def run(*args: Any) -> Any:
            self._runs += 1
            return compiled(*args)

        return run

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._runs = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.counts.append(self._runs)


def compiled(lit: Lit, how: str, backend: Any) -> nn.Module:
    if how == "module":
        return torch.compile(lit, backend=backend)
    if how == "module in place":
        lit.compile(backend=backend)
    elif how == "submodule":
        lit.net = torch.compile(lit.net, backend=backend)
    else:
        lit.net.compile(backend=backend)
    return lit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "criterion"),
    [("module", "taylor"), ("submodule", "magnitude"), ("in place", "magnitude"), ("module in place", "magnitude")],
)
def test_still_compiled_after_twelve_events(tmp_path, how, criterion) -> None:
    """PyTorch itself compiles eight times and then runs eagerly, with no more than a warning."""
    torch.manual_seed(0)
    plain, events = Lit(width=20), Events()
    options = {"max_epochs": EVENTS + 2, "limit_train_batches": 2, "limit_val_batches": 0}
    fit(tmp_path, plain, IterativePruning(Rounds(1, 1, EVENTS), Count(2), criterion), events, **options)
    torch._dynamo.reset()
    torch.manual_seed(0)
    lit, graphs, own = Lit(width=20), Graphs(), Events()
    pruning = IterativePruning(Rounds(1, 1, EVENTS), Count(2), criterion)
    fit(tmp_path, compiled(lit, how, graphs.backend), pruning, own, graphs, **options)
    assert len(own.times) == len(events.times) == EVENTS
    assert own.times == events.times
    assert len(graphs.counts) == EVENTS + 2
    assert graphs.counts[-1] >= graphs.counts[0] / 3 > 0  # Taylor's hooks, which break graphs, are gone in the end
    assert sum(widths(lit.net)) == sum(widths(plain.net)) < 40
    if criterion == "magnitude":
        assert widths(lit.net) == widths(plain.net)


def test_a_module_that_is_compiled_in_place(tmp_path) -> None:
    """Copies, on which events are tried, must not call the original."""
    torch.manual_seed(0)
    plain, options = Lit(), {"max_epochs": 2, "limit_train_batches": 1, "limit_val_batches": 0}
    fit(tmp_path, plain, IterativePruning(Constant(1), Ratio(0.5)), **options)
    torch._dynamo.reset()
    torch.manual_seed(0)
    lit = Lit()
    lit.compile(backend="eager")
    fit(tmp_path, lit, IterativePruning(Constant(1), Ratio(0.5)), **options)
    assert widths(lit.net) == widths(plain.net) == [4, 4, 3]
    assert lit.losses == pytest.approx(plain.losses, rel=1e-4)
    assert lit._compiled_call_impl is not None
