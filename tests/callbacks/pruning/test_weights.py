"""`IterativePruning` with `Weights`: masks that hold after every optimizer step, and plain checkpoints."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.training import STEPS, Adversaries, Events, Lit, Stream, fit, widths, zero_share
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lightning_prune import IterativePruning, Scope, Weights
from lightning_prune.budgets import Count, Ratio, Sparsity
from lightning_prune.criteria import Random
from lightning_prune.masks.select import unpack
from lightning_prune.schedules import Constant, Cubic, Rounds

MATRICES = 8 * 2 * 9 + 8 * 8 * 9 + 3 * 8


class Watched(Lit):
    """Records the share of zeros after each optimizer step, and their optimizer state."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.after_step: list[float] = []
        self.remembered: list[int] = []

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.after_step.append(zero_share(self))
        self.remembered.append(remembered_of_zeros(self, optimizer.optimizer))


def remembered_of_zeros(module: nn.Module, optimizer: Optimizer) -> int:
    """Number of entries of momentum and moments that belong to zero weights."""
    weights = [p for p in module.parameters() if p.dim() > 1]
    states = [(p, value) for p in weights for value in optimizer.state[p].values() if isinstance(value, Tensor)]
    return sum(int((value[p == 0] != 0).sum()) for p, value in states if value.shape == p.shape)


class AfterBatch(Callback):
    """Records the share of zeros at the end of each batch."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.shares.append(zero_share(pl_module))


def pruning(schedule: Any, budget: Any = Sparsity(0.5), **arguments: Any) -> IterativePruning:  # noqa: B008
    return IterativePruning(schedule, budget, granularity=Weights(), **arguments)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}, {"accumulate_grad_batches": 2}],
    ids=str,
)
def test_half_of_the_weights_stay_zero_after_every_step(tmp_path, optimizer, options) -> None:
    lit, probe = Watched(optimizer=optimizer), AfterBatch()
    fit(tmp_path, lit, probe, pruning(Constant(1)), max_epochs=4, **options)
    half = round(MATRICES / 2) / MATRICES
    assert half == 0.5
    assert probe.shares == [0.0] * STEPS + [half] * 3 * STEPS
    steps = STEPS // options.get("accumulate_grad_batches", 1)
    assert lit.after_step == [0.0] * steps + [half] * 3 * steps
    assert lit.remembered == [0] * 4 * steps
    assert len(lit.losses) == 4 * STEPS


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weights_would_regrow_without_the_callback(tmp_path, optimizer) -> None:
    """Control: the same weights, zeroed once, are nonzero after one step."""

    class Once(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                for p in pl_module.parameters():
                    p.data[p.abs() < p.abs().median()] = 0

    lit = Watched(optimizer=optimizer)
    fit(tmp_path, lit, Once(), max_epochs=2)
    assert max(lit.after_step) < 0.1


def test_a_ramp_in_steps(tmp_path) -> None:
    lit, events = Watched(), Events()
    fit(tmp_path, lit, events, pruning(Cubic(0, 8, every=2, unit="step"), Sparsity(0.8)), max_epochs=3)
    assert events.times == [(0, 2), (1, 4), (1, 6), (2, 8)]
    expected = [round(0.8 * (1 - (1 - n / 4) ** 3) * MATRICES) / MATRICES for n in (0, 1, 2, 3, 4)]
    assert lit.after_step == [share for share in expected for _ in range(2)] + [expected[-1]] * 2


def test_shares_and_counts(tmp_path) -> None:
    lit, mask = Watched(), pruning(Rounds(1, 1, 3, unit="step"), Count(100))
    fit(tmp_path, lit, mask, max_epochs=1)
    assert lit.after_step == [n * 100 / MATRICES for n in range(4)]
    lit = Watched()
    fit(tmp_path, lit, pruning(Constant(0), Ratio(0.25)), max_epochs=1)
    for p in (p for p in lit.parameters() if p.dim() > 1):
        assert int((p == 0).sum()) == p.numel() // 4


def test_masked_weights_stay_masked(tmp_path) -> None:
    """Random scores differ at each event, but masked weights stay masked."""
    lit, masks = Watched(), []

    class Zeros(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            masks.append(torch.cat([p.flatten() == 0 for p in pl_module.parameters() if p.dim() > 1]))

    fit(tmp_path, lit, Zeros(), pruning(Rounds(1, 1, 3), Sparsity(0.6), criterion=Random()), max_epochs=4)
    assert all(bool((later >= earlier).all()) for earlier, later in pairwise(masks))
    assert int(masks[-1].sum()) == round(0.6 * MATRICES)


def test_biases_norms_and_other_layers_stay(tmp_path) -> None:
    lit = Watched()
    fit(tmp_path, lit, pruning(Constant(0), scope=Scope(exclude=["net.8"])), max_epochs=2)
    for name, p in lit.named_parameters():
        assert bool((p == 0).any()) == (name in ("net.0.weight", "net.3.weight")), name


def test_data_without_a_length(tmp_path) -> None:
    lit = Watched()
    lit.train_dataloader = lambda: DataLoader(Stream(), 8)
    fit(tmp_path, lit, pruning(Rounds(2, 2, 2, unit="step")), max_epochs=-1, max_steps=6)
    assert lit.after_step == [0.0] * 2 + [0.25] * 2 + [0.5] * 2


def test_two_optimizers_under_manual_optimization(tmp_path) -> None:
    gan, events = Adversaries(), Events()
    trainer = fit(tmp_path, gan, pruning(Rounds(2, 4, 2, unit="step")), events, max_epochs=2)
    total = sum(p.numel() for p in gan.parameters() if p.dim() > 1)
    first, second = round(0.25 * total) / total, round(0.5 * total) / total
    assert events.times == [(0, 2), (0, 6)]
    assert gan.after_step == [0.0] * 2 + [first] * 4 + [second] * 10
    for part, optimizer in zip((gan.generator, gan.critic), trainer.optimizers, strict=True):
        assert remembered_of_zeros(part, optimizer) == 0


@pytest.mark.parametrize("weights_only", [False, True])
def test_checkpoints_are_plain_weights_with_zeros(tmp_path, weights_only) -> None:
    lit = Watched()
    checkpoint = ModelCheckpoint(tmp_path, save_weights_only=weights_only)
    fit(tmp_path, lit, pruning(Constant(1)), checkpoint, max_epochs=2)
    file = torch.load(checkpoint.best_model_path, weights_only=True)
    assert list(file["state_dict"]) == list(Lit().state_dict())
    assert all(value.shape == Lit().state_dict()[name].shape for name, value in file["state_dict"].items())
    plain = Lit()
    plain.load_state_dict(file["state_dict"])
    assert zero_share(plain) == 0.5
    loaded = Lit.load_from_checkpoint(checkpoint.best_model_path, weights_only=True)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in lit.state_dict().items())


def test_the_network_changes_only_by_zeros(tmp_path) -> None:
    lit = Watched()
    before = [(name, id(p)) for name, p in lit.named_parameters()]
    modules = [(name, type(module)) for name, module in lit.named_modules()]
    attributes = set(vars(lit.net[0]))
    fit(tmp_path, lit, pruning(Constant(0)), max_epochs=1)
    assert [(name, id(p)) for name, p in lit.named_parameters()] == before
    assert [(name, type(module)) for name, module in lit.named_modules()] == modules
    assert set(vars(lit.net[0])) == attributes
    assert not lit.net[0]._forward_pre_hooks


def test_no_hook_outlives_the_training(tmp_path) -> None:
    lit = Watched()
    trainer = fit(tmp_path, lit, pruning(Constant(0)), max_epochs=1)
    (optimizer,) = trainer.optimizers
    for p in lit.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert zero_share(lit) < 0.1


@pytest.mark.parametrize("weights_first", [True, False])
def test_masks_follow_removed_channels(tmp_path, weights_first) -> None:
    lit, probe, events = Watched(width=16), AfterBatch(), Events()
    masked, found = pruning(Constant(1)), {}

    class Masks(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            found.update(unpack(masked.state_dict()["pruner"]["masks"]))
            for name, mask in found.items():
                assert bool((pl_module.get_parameter(name)[~mask] == 0).all())
                assert mask.shape == pl_module.get_parameter(name).shape

    removing = IterativePruning(Rounds(2, 1, 2), Ratio(0.5))
    order = (masked, removing) if weights_first else (removing, masked)
    fit(tmp_path, lit, *order, Masks(), probe, events, max_epochs=5)
    assert widths(lit.net) == [8, 8, 3]
    assert events.times == [(1, 4), (2, 8), (3, 12)]
    assert lit.remembered == [0] * 5 * STEPS
    assert probe.shares[STEPS : 2 * STEPS] == [0.5] * STEPS
    hidden = sum(int((~mask).sum()) for mask in found.values())
    left = zero_share(lit)
    assert left == hidden / sum(p.numel() for p in lit.parameters() if p.dim() > 1)
    assert probe.shares[3 * STEPS :] == [left] * 2 * STEPS  # from the last event on not one weight comes back
    assert masked.sparsity == pytest.approx(left)


def test_masks_after_channels_reach_their_sparsity(tmp_path) -> None:
    """Sparsity of the remaining weights: both events at the same time, channels first."""
    lit = Watched(width=16)
    fit(tmp_path, lit, IterativePruning(Constant(1), Ratio(0.5)), pruning(Constant(1)), max_epochs=2)
    assert widths(lit.net) == [8, 8, 3]
    assert zero_share(lit) == 0.5


class Clipped(Lit):
    """Records the norm of all gradients before clipping, and that of the gradients of unmasked weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: list[tuple[float, float]] = []

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        gradients = [p.grad for p in self.parameters()]
        kept = [g * (p != 0) if p.dim() > 1 else g for p, g in zip(self.parameters(), gradients, strict=True)]
        self.norms.append(tuple(float(torch.cat([g.flatten() for g in some]).norm()) for some in (gradients, kept)))
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")


def test_masked_weights_do_not_count_in_the_clipped_norm(tmp_path) -> None:
    lit = Clipped()
    fit(tmp_path, lit, pruning(Constant(1), Sparsity(0.9)), max_epochs=2)
    dense, masked = lit.norms[:STEPS], lit.norms[STEPS:]
    assert all(everything == kept for everything, kept in dense)
    assert len(masked) == STEPS
    assert all(everything == kept for everything, kept in masked)


class Perturbing(Lit):
    """Changes all weights outside the optimizer."""

    def on_train_batch_end(self, *_: Any) -> None:
        for parameter in self.parameters():
            parameter.data += 0.01

    def on_validation_epoch_start(self) -> None:
        self.measured = zero_share(self)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_changes_of_masked_weights_by_others_are_neither_validated_nor_saved(tmp_path, optimizer) -> None:
    lit = Perturbing(optimizer=optimizer)
    fit(tmp_path, lit, pruning(Constant(1)), max_epochs=2)
    assert lit.measured == pytest.approx(0.5)
    assert zero_share(lit) == pytest.approx(0.5)


def test_a_pruner_warns_of_a_network_pruned_before(tmp_path) -> None:
    lit = Lit()
    dense = sum(p.numel() for p in lit.parameters())
    fit(tmp_path, lit, IterativePruning(Constant(1), Ratio(0.5)), max_epochs=2)
    now = sum(p.numel() for p in lit.parameters())
    message = f"was pruned before this training, from {dense:,} parameters to {now:,}: budgets and sparsities"
    with pytest.warns(UserWarning, match=message):
        fit(tmp_path, lit, IterativePruning(Constant(1), Ratio(0.5)), max_epochs=2)
    assert widths(lit) == [2, 2, 3]


def test_checkpoints_within_an_epoch_are_masked(tmp_path) -> None:
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path, Perturbing(), pruning(Constant(1)), save, max_epochs=2)
    for step in range(STEPS + 1, 2 * STEPS + 1):
        state = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"]
        weights = [value for name, value in state.items() if value.dim() > 1]
        zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
        assert zeros == pytest.approx(0.5), step
