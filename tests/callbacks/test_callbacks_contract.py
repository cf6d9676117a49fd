"""Properties of all callbacks of the package; a new callback is one row."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import launch
from helpers.training import Lit, same, trainer_for, widths, zero_share
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import lightning_prune.callbacks
from lightning_prune import (
    NM,
    AccuracyGuard,
    Blocks,
    IterativePruning,
    Regrowth,
    SlimmingPenalty,
    SparsityLogger,
    Weights,
)
from lightning_prune.budgets import Count, Ratio, Sparsity
from lightning_prune.callbacks import (
    Distillation,
    FinetuneLR,
    GroupLasso,
    GrowingPenalty,
    PrunedCheckpoints,
    PruningSummary,
    RecalibrateBatchNorm,
    Rewind,
    Supermask,
)
from lightning_prune.criteria import BlockInfluence, MagnitudeIncrease, Random
from lightning_prune.schedules import Constant, Cubic, Linear, Rounds

EPOCHS = 4
LAYERS = ("net.0.weight", "net.3.weight", "net.8.weight")


def channels() -> IterativePruning:
    return IterativePruning(Rounds(1, 1, 2), Ratio(0.5), "taylor")


ROWS: dict[str, Callable[[], list[Callback]]] = {  # the callback that is meant first, then what it needs
    "IterativePruning": lambda: [channels()],
    "IterativePruning of weights": lambda: [IterativePruning(Cubic(1, 3), Sparsity(0.6), granularity=Weights())],
    "IterativePruning of blocks": lambda: [IterativePruning(Constant(2), Count(1), BlockInfluence(), Blocks())],
    "IterativePruning by MagnitudeIncrease": lambda: [
        IterativePruning(Rounds(1, 1, 2), Ratio(0.5), MagnitudeIncrease())
    ],
    "IterativePruning that regrows weights": lambda: [
        IterativePruning(Constant(0), Sparsity(0.6), Random(), Weights(regrow=Regrowth(every=3, end=1.0)))
    ],
    "IterativePruning by blocks of weights": lambda: [IterativePruning(Cubic(1, 3), granularity=NM(1, 4))],
    "AccuracyGuard": lambda: [AccuracyGuard("val_loss", 5.0, mode="min"), channels()],
    "AccuracyGuard with rollback": lambda: [
        AccuracyGuard("val_loss", 5.0, mode="min", on_drop="rollback", retry=1),
        channels(),
    ],
    "SlimmingPenalty": lambda: [SlimmingPenalty(1e-3), channels()],
    "GroupLasso": lambda: [GroupLasso(1e-3), channels()],
    "GrowingPenalty": lambda: [GrowingPenalty(Linear(0, 6, unit="step"), Ratio(0.5)), channels()],
    "Supermask": lambda: [Supermask(0.6, lr=1.0)],
    "SparsityLogger": lambda: [SparsityLogger(), channels()],
    "PruningSummary": lambda: [PruningSummary(), channels()],
    "Rewind": lambda: [Rewind(), channels()],
    "Distillation": lambda: [Distillation(), channels()],
    "RecalibrateBatchNorm": lambda: [RecalibrateBatchNorm(6), channels()],
    "FinetuneLR": lambda: [FinetuneLR(), channels()],
    "PrunedCheckpoints": lambda: [PrunedCheckpoints(), channels()],
}
EMA: Any = getattr(lightning_callbacks, "EMAWeightAveraging", None)
ROW = pytest.mark.parametrize("row", ROWS)


def fit(folder: Path, module: Any, callbacks: list[Callback], ckpt_path: Any = None, **options: Any) -> Trainer:
    options = {"max_epochs": EPOCHS, "logger": CSVLogger(folder), **options}
    trainer = trainer_for(folder, *callbacks, **options)
    torch.manual_seed(0)
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def model() -> Lit:
    torch.manual_seed(0)
    return Lit()


def masks(row: str) -> bool:
    return row.endswith("weights") or row == "Supermask"


def expected(row: str) -> list[int]:
    return [8, 3] if row.endswith("of blocks") else [8, 8, 3] if masks(row) else [4, 4, 3]


def check(lit: LightningModule, row: str) -> None:
    """Checks that the network has the expected size, and no hooks."""
    assert widths(lit.net) == expected(row)
    if masks(row):
        assert zero_share(lit) == pytest.approx(0.6, abs=0.01)
    for module in lit.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def states(callbacks: list[Callback]) -> list[dict[str, Any]]:
    """States without the paths of files, which differ between trainings."""
    paths = ("dense_path", "snapshot", "path")
    return [{k: v for k, v in callback.state_dict().items() if k not in paths} for callback in callbacks]


def test_every_callback_has_a_row() -> None:
    assert set(lightning_prune.callbacks.__all__) <= set(ROWS)
    assert all(type(make()[0]).__name__ == name.split()[0] for name, make in ROWS.items())


@ROW
def test_resume(tmp_path, row) -> None:
    whole, callbacks = model(), ROWS[row]()
    fit(tmp_path, whole, [*callbacks, ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)])
    check(whole, row)
    for epoch in (0, 1, 2):
        lit, own = Lit(), ROWS[row]()
        fit(tmp_path / "part", lit, own, tmp_path / f"epoch={epoch}.ckpt")
        assert same(dict(lit.state_dict()), dict(whole.state_dict())), epoch
        assert same(states(own), states(callbacks)), epoch


@ROW
def test_accumulation(tmp_path, row) -> None:
    lit = model()
    fit(tmp_path, lit, ROWS[row](), accumulate_grad_batches=3)
    check(lit, row)


@ROW
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bf16(tmp_path, row, precision) -> None:
    lit = model()
    fit(tmp_path, lit, ROWS[row](), precision=precision)
    check(lit, row)
    assert all(parameter.isfinite().all() for parameter in lit.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("row", ["IterativePruning", "IterativePruning of weights", "Supermask"])
def test_compile(tmp_path, row) -> None:
    """All other callbacks at once, with pruning: compiling takes long."""
    lit = model()
    torch._dynamo.reset()
    first = {type(make()[0]): make()[0] for make in reversed(ROWS.values())}
    others = [callback for cls, callback in first.items() if cls not in (IterativePruning, Supermask)]
    others.sort(key=lambda callback: not isinstance(callback, AccuracyGuard))
    fit(
        tmp_path,
        torch.compile(lit, backend="eager"),
        [*ROWS[row](), *(others if row != "Supermask" else [])],
        limit_train_batches=2,
    )
    check(lit, row)


@pytest.mark.skipif(EMA is None, reason="this version of Lightning has no EMA")
@pytest.mark.parametrize("first", [True, False])
@ROW
def test_ema(tmp_path, row, first) -> None:
    lit, ema = model(), EMA(decay=0.5)
    if (first and row.endswith("rollback")) or (not first and row == "Supermask"):
        with pytest.raises(MisconfigurationException, match="EMAWeightAveraging"):
            fit(tmp_path, lit, [ema, *ROWS[row]()] if first else [*ROWS[row](), ema])
        return
    fit(tmp_path, lit, [ema, *ROWS[row]()] if first else [*ROWS[row](), ema])
    check(lit, row)
    assert [p.shape for p in ema._average_model.module.parameters()] == [p.shape for p in lit.parameters()]


@ROW
def test_a_second_fit(tmp_path, row) -> None:
    lit, callbacks = model(), ROWS[row]()
    fit(tmp_path, lit, callbacks)
    before = [parameter.detach().clone() for parameter in lit.parameters()]
    fit(tmp_path / "again", lit, callbacks, max_epochs=1)
    check(lit, row)
    assert not any(torch.equal(a, b) for a, b in zip(before, lit.parameters(), strict=True))


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@ROW
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_copies_and_pickles(tmp_path, row, duplicate) -> None:
    """Copies of new callbacks work as the originals; copies of used ones, and of the module, keep their state."""
    original, twin = model(), model()
    callbacks = ROWS[row]()
    copies = duplicate(callbacks)
    fit(tmp_path / "a", original, callbacks)
    fit(tmp_path / "b", twin, copies)
    assert same(dict(original.state_dict()), dict(twin.state_dict()))
    assert same(states(callbacks), states(copies))
    for callback in callbacks:
        assert same(duplicate(callback).state_dict(), callback.state_dict())
    again = duplicate(original)
    check(again, row)
    assert same(dict(again.state_dict()), dict(original.state_dict()))
    assert again.state_dict()._metadata == original.state_dict()._metadata


SCRIPT = """
import sys
from pathlib import Path

import torch
from test_callbacks_contract import EPOCHS, ROWS, fit, model, states

ranks, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)

if __name__ == "__main__":
    for number, row in enumerate(ROWS):
        lit, callbacks = model(), ROWS[row]()
        trainer = fit(folder / str(number), lit, callbacks, strategy="ddp", devices=ranks)
        rank = trainer.global_rank
        torch.save(dict(lit.named_parameters()) | {"rank": rank}, folder / f"{row}_{rank}.pt")
"""


@pytest.mark.slow
def test_two_ranks(tmp_path) -> None:
    for row, (first, second) in launch(tmp_path, 2, SCRIPT, tuple(ROWS)).items():
        assert (first.pop("rank"), second.pop("rank")) == (0, 1)
        assert same(first, second), row
        assert [len(first[name]) for name in first if name in LAYERS] == expected(row)
