"""EMA and SWA: the averaged copy of a callback is pruned with the network, in either order of the callbacks."""

from typing import Any

import pytest
import torch
from helpers.training import Lit, fit, trainer_for, widths, zero_share
from lightning.pytorch import Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor

from lightning_prune import IterativePruning, Weights, load_pruned
from lightning_prune.budgets import Ratio, Sparsity
from lightning_prune.callbacks import PrunedCheckpoints
from lightning_prune.schedules import Cubic, Rounds
from lightning_prune.surgery.plan import Plan, select

EPOCHS = 6
DECAY = 0.75
WeightAveraging: Any = getattr(lightning_callbacks, "EMAWeightAveraging", None)  # not in all versions we support
needs_ema = pytest.mark.skipif(WeightAveraging is None, reason="this version of Lightning has no EMA")
AVERAGES = pytest.mark.parametrize("average", [pytest.param("ema", marks=needs_ema), "swa"])
ORDERS = pytest.mark.parametrize("first", ["pruning", "average"])
METHODS = {
    "nothing": lambda: [],
    "channels": lambda: [IterativePruning(Rounds(2, 2, 2), Ratio(0.5), "taylor")],
    "masks": lambda: [IterativePruning(Cubic(1, 4), Sparsity(0.6), granularity=Weights())],
}


def averaging(which: str) -> Callback:
    return WeightAveraging(decay=DECAY) if which == "ema" else StochasticWeightAveraging(0.01, swa_epoch_start=2)


def in_order(first: str, pruning: list[Callback], average: Callback) -> list[Callback]:
    return [*pruning, average] if first == "pruning" else [average, *pruning]


class ByHand(Callback):
    """The average computed by hand in float64: removed entries are dropped, masked ones are 0."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.values = {name: p.detach().double().clone() for name, p in pl_module.named_parameters()}

    def on_prune(self, trainer: Trainer, pl_module: Any, plan: Plan, report: Any) -> None:
        self.values = {name: select(value, plan.keep.get(name, {})) for name, value in self.values.items()}
        for name, mask in plan.masks.items():
            self.values[name][~mask] = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            now = parameter.detach().double()
            first = trainer.global_step == 1  # the first update copies
            self.values[name] = now if first else DECAY * self.values[name] + (1 - DECAY) * now


@needs_ema
@ORDERS
@pytest.mark.parametrize("method", METHODS)
def test_the_average_is_that_of_the_remaining_weights(tmp_path, method, first) -> None:
    lit, by_hand = Lit(norm=False), ByHand()
    fit(tmp_path, lit, *in_order(first, METHODS[method](), averaging("ema")), by_hand, max_epochs=EPOCHS)
    assert widths(lit.net) == ([4, 4, 3] if method == "channels" else [8, 8, 3])
    for name, parameter in lit.named_parameters():  # the training ends with the average in the network
        assert torch.allclose(parameter.double(), by_hand.values[name], rtol=1e-5, atol=1e-7), name
    if method == "masks":
        assert zero_share(lit) == pytest.approx(0.6, abs=0.01)


def run(folder: Any, first: str, method: str, average: str, ckpt_path: str | None = None) -> tuple[Lit, Callback, Any]:
    torch.manual_seed(0 if ckpt_path is None else 1)
    lit, kept = Lit(), averaging(average)
    save = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    trainer = trainer_for(folder, *in_order(first, METHODS[method](), kept), save, max_epochs=EPOCHS)
    trainer.fit(lit, ckpt_path=ckpt_path)
    return lit, kept, trainer


@ORDERS
@AVERAGES
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_bit_identical(tmp_path, method, average, first) -> None:
    """Network, average and optimizer; without pruning as a control."""
    whole, kept, trainer = run(tmp_path / "whole", first, method, average)
    copy = kept._average_model.state_dict()
    assert widths(whole.net) == widths(kept._average_model) == ([4, 4, 3] if method == "channels" else [8, 8, 3])
    for epoch in (1, 2, 4):
        path = str(tmp_path / f"whole/epoch={epoch}.ckpt")
        lit, own, other = run(tmp_path / f"part{epoch}", first, method, average, path)
        assert all(torch.equal(value, lit.state_dict()[name]) for name, value in whole.state_dict().items()), epoch
        found = own._average_model.state_dict()
        assert found.keys() == copy.keys()
        assert all(torch.equal(value, found[name]) for name, value in copy.items()), epoch
        momenta = zip(trainer.optimizers[0].state.values(), other.optimizers[0].state.values(), strict=True)
        assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in momenta)


@ORDERS
@AVERAGES
def test_masked_weights_are_zero_in_the_average(tmp_path, average, first) -> None:
    lit, kept, _ = run(tmp_path, first, "masks", average)
    assert zero_share(kept._average_model) == zero_share(lit) == pytest.approx(0.6, abs=0.01)


@ORDERS
@AVERAGES
def test_checkpoints_with_averages_load_everywhere(tmp_path, average, first) -> None:
    """Also if the state dict in the file is the average, which Lightning writes without our additional entries."""
    if average == "swa" and WeightAveraging is None:
        pytest.skip("this version of Lightning writes functions into the checkpoints of SWA")
    lit, _, trainer = run(tmp_path, first, "channels", average)
    expected = {0: [8, 8, 3], 2: [6, 6, 3], 5: [4, 4, 3]}
    tester = trainer_for(tmp_path, PrunedCheckpoints())
    fresh = Lit()
    for epoch in (5, 0, 2):
        path = tmp_path / f"epoch={epoch}.ckpt"
        weights = torch.load(path, weights_only=True)["state_dict"]
        for module in (load_pruned(Lit, path), load_pruned(Lit(), path), Lit.load_from_checkpoint(path)):
            assert widths(module.net) == expected[epoch]
            assert module.net[3].in_channels == expected[epoch][0]
            assert all(torch.equal(value, module.state_dict()[name]) for name, value in weights.items())
        tester.test(fresh, ckpt_path=str(path), verbose=False)
        trainer.test(lit, ckpt_path=str(path), verbose=False)
        assert widths(fresh.net) == widths(lit.net) == expected[epoch]


@needs_ema
@ORDERS
def test_a_second_fit_continues_from_the_pruned_network(tmp_path, first) -> None:
    lit, pruning = Lit(), METHODS["channels"]()
    fit(tmp_path, lit, *in_order(first, pruning, averaging("ema")), max_epochs=EPOCHS)
    before = [p.detach().clone() for p in lit.parameters()]
    trainer_for(tmp_path, *in_order(first, pruning, averaging("ema")), max_epochs=1).fit(lit)
    assert widths(lit.net) == [4, 4, 3]
    assert not any(torch.equal(a, b) for a, b in zip(before, lit.parameters(), strict=True))
